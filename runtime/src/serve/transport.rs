//! Bytes to and from the other end of a link, whatever carries them.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Duration;

#[cfg(unix)]
use std::os::unix::net::{UnixListener, UnixStream};

use super::address::{Address, resolve};
#[cfg(unix)]
use super::serial;
use crate::{Error, Result};

/// Longest that one [`Stream::read`] waits.
const READ_WAIT: Duration = Duration::from_millis(100);

/// Longest that one write may be stuck before the other end counts as gone.
const WRITE_WAIT: Duration = Duration::from_secs(5);

/// Longest that connecting may take.
const CONNECT_WAIT: Duration = Duration::from_secs(3);

/// An open link.
#[derive(Debug)]
pub enum Stream {
    /// A TCP connection.
    Tcp(TcpStream),
    /// A Unix socket's connection.
    #[cfg(unix)]
    Unix(UnixStream),
    /// A serial port.
    #[cfg(unix)]
    Serial(std::fs::File),
}

impl Stream {
    /// Connects to `address` (or opens the port).
    ///
    /// # Errors
    /// When nobody listens there, or it is not allowed.
    pub fn connect(address: &Address) -> Result<Self> {
        let failed = |error: io::Error| failure(address, "connected to", &error);
        match address {
            Address::Tcp(name) => {
                let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
                for socket in resolve(name)? {
                    match TcpStream::connect_timeout(&socket, CONNECT_WAIT) {
                        Ok(stream) => return Self::tcp(stream).map_err(failed),
                        Err(error) => last = error,
                    }
                }
                Err(failed(last))
            }
            #[cfg(unix)]
            Address::Unix(path) => UnixStream::connect(path).and_then(Self::unix).map_err(failed),
            #[cfg(unix)]
            Address::Serial { path, baud } => {
                serial::open(path, *baud).map(Self::Serial).map_err(failed)
            }
            #[cfg(not(unix))]
            _ => Err(failed(io::ErrorKind::Unsupported.into())),
        }
    }

    pub(super) fn tcp(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(READ_WAIT))?;
        stream.set_write_timeout(Some(WRITE_WAIT))?;
        Ok(Self::Tcp(stream))
    }

    #[cfg(unix)]
    pub(super) fn unix(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(READ_WAIT))?;
        stream.set_write_timeout(Some(WRITE_WAIT))?;
        Ok(Self::Unix(stream))
    }

    /// A second handle on the same link, for another thread.
    ///
    /// # Errors
    /// When the system has no handles left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Tcp(stream) => Self::Tcp(stream.try_clone()?),
            #[cfg(unix)]
            Self::Unix(stream) => Self::Unix(stream.try_clone()?),
            #[cfg(unix)]
            Self::Serial(file) => Self::Serial(file.try_clone()?),
        })
    }

    /// Whether it is a serial port, which has no other end that could hang up.
    pub(super) fn is_serial(&self) -> bool {
        #[cfg(unix)]
        return matches!(self, Self::Serial(_));
        #[cfg(not(unix))]
        false
    }

    /// Reads what there is, waiting a little: `Some(0)` is the end, `None` nothing yet.
    ///
    /// # Errors
    /// When the link broke.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let read = match self {
            Self::Tcp(stream) => stream.read(buffer),
            #[cfg(unix)]
            Self::Unix(stream) => stream.read(buffer),
            #[cfg(unix)]
            Self::Serial(file) => serial::read(file, buffer, READ_WAIT),
        };
        match read {
            Ok(count) => Ok(Some(count)),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock
                | io::ErrorKind::TimedOut
                | io::ErrorKind::Interrupted => Ok(None),
                _ => Err(error),
            },
        }
    }

    /// Writes all of `bytes`.
    ///
    /// # Errors
    /// When the link broke or takes nothing for some seconds.
    pub fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.write_all(bytes),
            #[cfg(unix)]
            Self::Unix(stream) => stream.write_all(bytes),
            #[cfg(unix)]
            Self::Serial(file) => serial::write_all(file, bytes, WRITE_WAIT),
        }
    }

    /// Ends the link for all its handles. A serial port has no such end; its reader stops when it
    /// is told to.
    pub fn shutdown(&self) {
        // A link that is gone already needs no ending.
        let _ = match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Both),
            #[cfg(unix)]
            Self::Unix(stream) => stream.shutdown(Shutdown::Both),
            #[cfg(unix)]
            Self::Serial(_) => Ok(()),
        };
    }
}

/// A place where links come in.
#[derive(Debug)]
pub(super) enum Listener {
    Tcp(TcpListener),
    #[cfg(unix)]
    Unix(UnixListener, std::path::PathBuf),
}

impl Listener {
    /// Listens at `address`; `None` for a serial port, which is opened instead.
    pub(super) fn bind(address: &Address) -> Result<Option<Self>> {
        let failed = |error: io::Error| failure(address, "listened at", &error);
        match address {
            Address::Tcp(name) => {
                let listener = TcpListener::bind(&*resolve(name)?).map_err(failed)?;
                listener.set_nonblocking(true).map_err(failed)?;
                Ok(Some(Self::Tcp(listener)))
            }
            #[cfg(unix)]
            Address::Unix(path) => {
                // A socket that a killed process left behind answers nobody.
                if UnixStream::connect(path).is_ok() {
                    return Err(failed(io::ErrorKind::AddrInUse.into()));
                }
                use std::os::unix::fs::FileTypeExt;
                if std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
                {
                    std::fs::remove_file(path).map_err(failed)?;
                }
                let listener = UnixListener::bind(path).map_err(failed)?;
                // Owner and group only, whatever the umask says.
                use std::os::unix::fs::PermissionsExt;
                let mode = std::fs::Permissions::from_mode(0o660);
                std::fs::set_permissions(path, mode).map_err(failed)?;
                listener.set_nonblocking(true).map_err(failed)?;
                Ok(Some(Self::Unix(listener, path.clone())))
            }
            #[cfg(unix)]
            Address::Serial { .. } => Ok(None),
            #[cfg(not(unix))]
            _ => Err(failed(io::ErrorKind::Unsupported.into())),
        }
    }

    /// The next link, with the name of its other end; `None` when there is none waiting.
    pub(super) fn accept(&self) -> io::Result<Option<(Stream, String)>> {
        let accepted = match self {
            Self::Tcp(listener) => listener
                .accept()
                .and_then(|(stream, peer)| Ok((Stream::tcp(stream)?, format!("tcp:{peer}")))),
            #[cfg(unix)]
            Self::Unix(listener, path) => listener.accept().and_then(|(stream, _)| {
                Ok((Stream::unix(stream)?, format!("unix:{}", path.display())))
            }),
        };
        match accepted {
            Ok(accepted) => Ok(Some(accepted)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Where it really listens (port 0 becomes a free port).
    pub(super) fn local(&self) -> String {
        match self {
            Self::Tcp(listener) => match listener.local_addr() {
                Ok(address) => format!("tcp:{address}"),
                Err(_) => "tcp:unknown".into(),
            },
            #[cfg(unix)]
            Self::Unix(_, path) => format!("unix:{}", path.display()),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        #[cfg(unix)]
        if let Self::Unix(_, path) = self {
            // The next start removes it otherwise.
            let _ = std::fs::remove_file(path);
        }
    }
}

fn failure(address: &Address, done: &str, error: &io::Error) -> Error {
    Error::Request(format!("{address} cannot be {done}: {error}"))
}

#[cfg(all(test, unix))]
mod tests {
    use std::time::Instant;

    use super::*;

    fn read_some(stream: &mut Stream, count: usize) -> Vec<u8> {
        let mut all = Vec::new();
        let start = Instant::now();
        while all.len() < count && start.elapsed() < Duration::from_secs(5) {
            let mut buffer = [0; 64];
            if let Some(read) = stream.read(&mut buffer).unwrap() {
                all.extend_from_slice(&buffer[..read]);
            }
        }
        all
    }

    /// A pseudo-terminal's two ends: the port's path and the other side.
    fn pty() -> (std::path::PathBuf, nix::pty::PtyMaster) {
        use nix::fcntl::OFlag;
        let master = nix::pty::posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY).unwrap();
        nix::pty::grantpt(&master).unwrap();
        nix::pty::unlockpt(&master).unwrap();
        let path = nix::pty::ptsname_r(&master).unwrap().into();
        (path, master)
    }

    #[test]
    fn a_serial_port_carries_every_byte_unchanged() {
        let (path, mut master) = pty();
        let mut port = Stream::connect(&Address::Serial { path, baud: 115_200 }).unwrap();
        let bytes: Vec<u8> = (0..=255).collect();
        master.write_all(&bytes).unwrap();
        assert_eq!(read_some(&mut port, 256), bytes);
        port.write_all(&bytes).unwrap();
        let mut back = vec![0; 256];
        master.read_exact(&mut back).unwrap();
        assert_eq!(back, bytes);
        assert_eq!(port.read(&mut back).unwrap(), None);
        drop(master);
        // The other side is gone: an end or an error, not silence for ever.
        assert!(!matches!(port.read(&mut back), Ok(Some(1..) | None)));
    }

    #[test]
    fn a_port_that_another_program_has_is_refused() {
        let (path, _master) = pty();
        let address = Address::Serial { path, baud: 115_200 };
        let first = Stream::connect(&address).unwrap();
        let second = Stream::connect(&address).unwrap_err().to_string();
        assert!(second.contains("another program"), "{second}");
        drop(first);
        Stream::connect(&address).unwrap();
    }

    #[test]
    fn unknown_speeds_and_files_are_refused() {
        let (path, _master) = pty();
        let error = Stream::connect(&Address::Serial { path, baud: 12_345 }).unwrap_err();
        assert!(error.to_string().contains("12345 baud"), "{error}");
        let missing = Address::Serial { path: "/nowhere/tty".into(), baud: 9600 };
        assert!(Stream::connect(&missing).unwrap_err().to_string().contains("/nowhere/tty"));
    }

    #[test]
    fn sockets_are_taken_over_from_the_dead_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let address = Address::Unix(path.clone());
        let listener = Listener::bind(&address).unwrap().unwrap();
        let mut client = Stream::connect(&address).unwrap();
        let (mut server, _) = loop {
            if let Some(accepted) = listener.accept().unwrap() {
                break accepted;
            }
        };
        assert!(Listener::bind(&address).is_err());
        client.write_all(b"hello").unwrap();
        assert_eq!(read_some(&mut server, 5), b"hello");
        client.shutdown();
        assert_eq!(server.read(&mut [0; 8]).unwrap(), Some(0));
        drop(listener);
        assert!(!path.exists());
        // Left behind by a killed process.
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        Listener::bind(&address).unwrap();
        // A file that is no socket is not touched.
        let file = directory.path().join("thesis");
        std::fs::write(&file, "x").unwrap();
        assert!(Listener::bind(&Address::Unix(file.clone())).is_err());
        assert!(file.exists());
    }
}
