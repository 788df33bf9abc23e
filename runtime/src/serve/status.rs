//! Health, metrics and a person's orders over HTTP, on a local port.
//!
//! `GET /healthz`, `GET /metrics`, and `POST /scanners/N/ORDER`, where N counts from 1 and ORDER is
//! `start`, `pause`, `stop` or `clear-fault` (the acknowledgement that a board waits for after an
//! emergency stop). Orders are taken at a loopback address only, and need the header [`OPERATOR`],
//! which a web page that somebody on this machine looks at cannot send.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use diffbulk_link::message::Command;

use super::health::Health;
use super::hub::Input;
use super::metrics::Metrics;
use crate::{Error, Result};

/// Header that an order needs, in lower case.
const OPERATOR: &str = "diffbulk-operator:";

/// Longest that a request may take to come in, and its answer to be taken.
const WAIT: Duration = Duration::from_secs(1);
const LONGEST_REQUEST: usize = 4096;
const POLL: Duration = Duration::from_millis(50);

/// Listens at `address`.
///
/// # Errors
/// When the port is taken.
pub(super) fn bind(address: SocketAddr) -> Result<TcpListener> {
    let failed = |error: std::io::Error| {
        Error::Request(format!("metrics cannot be served at {address}: {error}"))
    };
    let listener = TcpListener::bind(address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}

/// Who answers, and from what.
pub(super) struct Status<'a> {
    pub(super) listener: TcpListener,
    pub(super) metrics: &'a Metrics,
    pub(super) health: &'a Health,
    /// Where orders go; `None` where they are not taken.
    pub(super) orders: Option<Sender<Input>>,
}

impl Status<'_> {
    /// Answers until `stop` is set. One request at a time, each within two seconds: nobody can
    /// hold it up for long, however slowly it sends, and nothing else depends on it.
    pub(super) fn serve(&self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            match self.listener.accept() {
                // Who hangs up early needs no answer.
                Ok((stream, _)) => drop(self.answer(stream)),
                Err(_) => std::thread::sleep(POLL),
            }
        }
    }

    fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        stream.set_nonblocking(false)?;
        stream.set_write_timeout(Some(WAIT))?;
        let request = request(&mut stream)?;
        let request = String::from_utf8_lossy(&request);
        let mut words = request.lines().next().unwrap_or_default().split(' ');
        let (status, body) = match (words.next(), words.next()) {
            (Some("GET"), Some("/metrics")) => ("200 OK", self.metrics.prometheus()),
            (Some("GET"), Some("/healthz")) => match self.health.report() {
                (true, text) => ("200 OK", text),
                (false, text) => ("503 Service Unavailable", text),
            },
            (Some("GET"), _) => ("404 Not Found", "there are /healthz and /metrics\n".into()),
            (Some("POST"), Some(path)) => self.order(path, &request),
            _ => ("405 Method Not Allowed", "only GET, and POST of orders\n".into()),
        };
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes())?;
        stream.write_all(body.as_bytes())
    }

    fn order(&self, path: &str, request: &str) -> (&'static str, String) {
        let Some(orders) = &self.orders else {
            let why =
                "orders are taken at a loopback address only: give --metrics 127.0.0.1:PORT\n";
            return ("403 Forbidden", why.into());
        };
        if !request.lines().any(|line| line.to_ascii_lowercase().starts_with(OPERATOR)) {
            return (
                "403 Forbidden",
                "an order needs the header `Diffbulk-Operator: NAME`\n".into(),
            );
        }
        let named = path.strip_prefix("/scanners/").and_then(|rest| rest.split_once('/'));
        let order = named.and_then(|(number, order)| {
            let station = number.parse::<usize>().ok()?.checked_sub(1)?;
            let command = match order {
                "start" => Command::Start,
                "pause" => Command::Pause,
                "stop" => Command::Stop,
                "clear-fault" => Command::ClearFault,
                _ => return None,
            };
            Some(Input::Order { station, command })
        });
        let Some(order) = order else {
            let what = "orders are /scanners/1/start, pause, stop and clear-fault\n";
            return ("404 Not Found", what.into());
        };
        // A hub that does not take it in time is stuck, which /healthz says.
        match orders.send_timeout(order, WAIT) {
            Ok(()) => ("202 Accepted", "passed on to the board\n".into()),
            Err(_) => ("503 Service Unavailable", "the daemon is stuck or stopping\n".into()),
        }
    }
}

/// A request's head, as much as comes within [`WAIT`].
fn request(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let end = Instant::now() + WAIT;
    let (mut request, mut buffer) = (Vec::new(), [0; 512]);
    let ended = |request: &[u8]| request.windows(4).any(|window| window == b"\r\n\r\n");
    while !ended(&request) && request.len() < LONGEST_REQUEST {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(std::io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut buffer)? {
            0 => break,
            count => request.extend_from_slice(&buffer[..count]),
        }
    }
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(address: SocketAddr, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(request).unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    }

    #[test]
    fn health_and_metrics_are_told_and_noise_is_survived() {
        let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let (metrics, health) = (Metrics::default(), Health::default());
        let (orders, taken) = crossbeam_channel::bounded(1);
        let stop = AtomicBool::new(false);
        let orders = Some(orders);
        let status = Status { listener, metrics: &metrics, health: &health, orders };
        std::thread::scope(|scope| {
            scope.spawn(|| status.serve(&stop));
            let long = [b'x'; 10_000];
            for noise in [&b"\r\n\r\n"[..], b"\xff\xff \r\n\r\n", &long] {
                get(address, noise);
            }
            let text = get(address, b"GET /metrics HTTP/1.1\r\n\r\n");
            assert!(text.starts_with("HTTP/1.1 200") && text.contains("diffbulk_tiles_total 0"));
            let text = get(address, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n");
            assert!(text.starts_with("HTTP/1.1 503") && text.contains("not ready\nBAD model"));
            assert!(get(address, b"GET / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404"));
            assert!(get(address, b"PUT /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405"));
            for (request, answer) in [
                ("/scanners/2/clear-fault HTTP/1.1\r\nDiffBulk-Operator: me", 202),
                ("/scanners/2/clear-fault HTTP/1.1\r\nHost: x", 403),
                ("/scanners/0/stop HTTP/1.1\r\ndiffbulk-operator: me", 404),
                ("/scanners/1/explode HTTP/1.1\r\ndiffbulk-operator: me", 404),
            ] {
                let text = get(address, format!("POST {request}\r\n\r\n").as_bytes());
                assert!(text.starts_with(&format!("HTTP/1.1 {answer}")), "{request}: {text}");
            }
            let order = taken.try_recv().unwrap();
            let Input::Order { station: 1, command: Command::ClearFault } = order else {
                panic!("{order:?}");
            };
            assert!(taken.is_empty());
            // One that sends a byte now and then holds nobody up for longer than a second.
            let mut slow = TcpStream::connect(address).unwrap();
            let begun = Instant::now();
            scope.spawn(move || {
                while begun.elapsed() < Duration::from_secs(4) && slow.write_all(b"x").is_ok() {
                    std::thread::sleep(Duration::from_millis(200));
                }
            });
            std::thread::sleep(Duration::from_millis(100));
            assert!(get(address, b"GET /metrics HTTP/1.1\r\n\r\n").contains(" 200 "));
            assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
            stop.store(true, Ordering::Relaxed);
        });
    }
}
