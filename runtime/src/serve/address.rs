//! Addresses of a scanner's ends: `tcp:HOST:PORT`, `unix:PATH`, `serial:PATH[@BAUD]`.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::str::FromStr;

use crate::{Error, Result};

/// Speed of a serial line where none is given.
pub const DEFAULT_BAUD: u32 = 921_600;

/// Where one end of a link is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// Host and port.
    Tcp(String),
    /// A Unix socket.
    Unix(PathBuf),
    /// A serial port.
    Serial {
        /// The device.
        path: PathBuf,
        /// Its speed in baud.
        baud: u32,
    },
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let bad = || {
            format!("`{text}` is no address; give tcp:HOST:PORT, unix:PATH or serial:PATH[@BAUD]")
        };
        let (kind, rest) = text.split_once(':').ok_or_else(bad)?;
        if rest.is_empty() {
            return Err(bad());
        }
        match kind {
            "tcp" => {
                let port = rest.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
                port.map(|_| Self::Tcp(rest.into())).ok_or_else(bad)
            }
            "unix" => Ok(Self::Unix(rest.into())),
            "serial" => match rest.rsplit_once('@') {
                None => Ok(Self::Serial { path: rest.into(), baud: DEFAULT_BAUD }),
                Some((path, baud)) => {
                    Ok(Self::Serial { path: path.into(), baud: baud.parse().map_err(|_| bad())? })
                }
            },
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(out, "tcp:{address}"),
            Self::Unix(path) => write!(out, "unix:{}", path.display()),
            Self::Serial { path, baud } => write!(out, "serial:{}@{baud}", path.display()),
        }
    }
}

impl Address {
    /// Whether only this machine reaches it.
    ///
    /// # Errors
    /// When a host name is not known.
    pub fn is_local(&self) -> Result<bool> {
        match self {
            Self::Tcp(address) => {
                Ok(resolve(address)?.iter().all(|found| found.ip().is_loopback()))
            }
            Self::Unix(_) | Self::Serial { .. } => Ok(true),
        }
    }
}

/// The socket addresses behind `HOST:PORT`; never empty.
///
/// # Errors
/// When the name is not known.
pub(super) fn resolve(address: &str) -> Result<Vec<SocketAddr>> {
    let unknown = |problem: &dyn fmt::Display| {
        Error::Request(format!("tcp:{address} is not known ({problem}); check host and port"))
    };
    let found: Vec<SocketAddr> =
        address.to_socket_addrs().map_err(|error| unknown(&error))?.collect();
    if found.is_empty() { Err(unknown(&"no address")) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        for text in ["tcp:127.0.0.1:7400", "tcp:[::1]:0", "unix:/run/x.sock", "serial:/dev/a@9600"]
        {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        assert_eq!(
            "serial:/dev/ttyS0".parse(),
            Ok(Address::Serial { path: "/dev/ttyS0".into(), baud: DEFAULT_BAUD })
        );
        for bad in ["", "tcp", "tcp:", "tcp:host", "tcp:h:99999", "udp:h:1", "serial:/dev/a@fast"] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }

    #[test]
    fn loopback_is_local_and_the_rest_is_not() {
        let local = |text: &str| text.parse::<Address>().unwrap().is_local().unwrap();
        assert!(local("tcp:127.0.0.1:1") && local("tcp:[::1]:1") && local("unix:x"));
        assert!(!local("tcp:0.0.0.0:1") && !local("tcp:192.0.2.1:1"));
    }
}
