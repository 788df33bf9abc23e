//! Health and metrics over HTTP, on a local port: `GET /healthz`, `GET /metrics`.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::metrics::Metrics;
use crate::{Error, Result};

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

/// Answers until `stop` is set. One request at a time, each within a second or two: nobody can
/// hold it up for long, and nothing else depends on it.
pub(super) fn serve(
    listener: &TcpListener,
    metrics: &Arc<Metrics>,
    health: &dyn Fn() -> (bool, String),
    stop: &AtomicBool,
) {
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            // Who hangs up early needs no answer.
            Ok((stream, _)) => drop(answer(stream, metrics, health)),
            Err(_) => std::thread::sleep(POLL),
        }
    }
}

fn answer(
    mut stream: TcpStream,
    metrics: &Metrics,
    health: &dyn Fn() -> (bool, String),
) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(WAIT))?;
    stream.set_write_timeout(Some(WAIT))?;
    let mut request = Vec::new();
    let mut buffer = [0; 512];
    let ended = |request: &[u8]| request.windows(4).any(|window| window == b"\r\n\r\n");
    while !ended(&request) && request.len() < LONGEST_REQUEST {
        match stream.read(&mut buffer)? {
            0 => break,
            count => request.extend_from_slice(&buffer[..count]),
        }
    }
    let line = request.split(|&byte| byte == b'\r').next().unwrap_or_default();
    let mut words = line.split(|&byte| byte == b' ');
    let (status, body) = match (words.next(), words.next()) {
        (Some(b"GET"), Some(b"/metrics")) => ("200 OK", metrics.prometheus()),
        (Some(b"GET"), Some(b"/healthz")) => match health() {
            (true, text) => ("200 OK", text),
            (false, text) => ("503 Service Unavailable", text),
        },
        (Some(b"GET"), _) => ("404 Not Found", "there are /healthz and /metrics\n".into()),
        _ => ("405 Method Not Allowed", "only GET\n".into()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())
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
        let (metrics, stop) = (Arc::new(Metrics::default()), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| serve(&listener, &metrics, &|| (false, "no model\n".into()), &stop));
            let long = [b'x'; 10_000];
            for noise in [&b"\r\n\r\n"[..], b"\xff\xff \r\n\r\n", &long] {
                get(address, noise);
            }
            let text = get(address, b"GET /metrics HTTP/1.1\r\n\r\n");
            assert!(text.starts_with("HTTP/1.1 200") && text.contains("diffbulk_tiles_total 0"));
            let text = get(address, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n");
            assert!(text.starts_with("HTTP/1.1 503") && text.ends_with("no model\n"));
            assert!(get(address, b"GET / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404"));
            assert!(get(address, b"POST /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405"));
            stop.store(true, Ordering::Relaxed);
        });
    }
}
