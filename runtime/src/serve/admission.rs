//! A shared token for TCP beyond this machine.
//!
//! Both ends prove that they know the token without saying it: each sends a random number and
//! answers the other's with HMAC-SHA-256 over both numbers, keyed with the token. Whoever listens
//! learns nothing that could be used again. What follows is not encrypted; where the network is
//! not trusted it belongs in a tunnel.
//!
//! ```text
//! server:  DIFFBULK 1 <server nonce, hex>\n
//! client:  <client nonce, hex> <HMAC("client" server client), hex>\n
//! server:  <HMAC("server" server client), hex>\n
//! ```

use std::path::Path;
use std::time::{Duration, Instant};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::transport::Stream;
use crate::model::hex;
use crate::{Error, Result};

const GREETING: &str = "DIFFBULK 1 ";
const NONCE_BYTES: usize = 16;
const LONGEST_LINE: usize = 160;
const WAIT: Duration = Duration::from_secs(5);

/// Fewest bytes of a token.
const TOKEN_BYTES: usize = 16;

/// The shared secret.
#[derive(Clone)]
pub struct Token(Vec<u8>);

impl std::fmt::Debug for Token {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Token(..)")
    }
}

impl Token {
    /// Reads it from a file, whose first line it is.
    ///
    /// # Errors
    /// When the file cannot be read or the token is too short to be one.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let line = text.lines().next().unwrap_or_default().trim();
        if line.len() < TOKEN_BYTES {
            return Err(Error::Request(format!(
                "the token in {} has {} characters, fewer than {TOKEN_BYTES}; make one with \
                 `openssl rand -hex 32`",
                path.display(),
                line.len()
            )));
        }
        Ok(Self(line.as_bytes().to_vec()))
    }

    fn mac(&self, who: &str, server: &str, client: &str) -> Option<Hmac<Sha256>> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).ok()?;
        for part in [who, "\0", server, "\0", client] {
            mac.update(part.as_bytes());
        }
        Some(mac)
    }

    fn proof(&self, who: &str, server: &str, client: &str) -> Option<String> {
        Some(hex(&self.mac(who, server, client)?.finalize().into_bytes()))
    }

    /// Compares in constant time.
    fn accepts(&self, proof: &str, who: &str, server: &str, client: &str) -> bool {
        match (self.mac(who, server, client), unhex(proof)) {
            (Some(mac), Some(bytes)) => mac.verify_slice(&bytes).is_ok(),
            _ => false,
        }
    }
}

/// Lets a client in that knows the token.
///
/// # Errors
/// In words for the log when it does not, or says nothing in time.
pub(super) fn admit(stream: &mut Stream, token: &Token) -> std::result::Result<(), String> {
    let ours = nonce()?;
    let io = |error: std::io::Error| error.to_string();
    stream.write_all(format!("{GREETING}{ours}\n").as_bytes()).map_err(io)?;
    let line = line(stream)?;
    let Some((theirs, proof)) = line.split_once(' ') else {
        return Err("it does not speak the token's handshake".into());
    };
    if theirs.len() != 2 * NONCE_BYTES || !token.accepts(proof, "client", &ours, theirs) {
        return Err("it does not know the token".into());
    }
    let answer = token.proof("server", &ours, theirs).ok_or("no proof can be made")?;
    stream.write_all(format!("{answer}\n").as_bytes()).map_err(io)
}

/// Shows the token to a server, and makes sure that it knows it too.
///
/// # Errors
/// When the server asks for none, does not know it, or does not answer.
pub fn present(stream: &mut Stream, token: &Token) -> Result<()> {
    let mut talk = || -> std::result::Result<(), String> {
        let greeting = line(stream)?;
        let theirs = greeting.strip_prefix(GREETING).ok_or("it asks for no token")?;
        let ours = nonce()?;
        let proof = token.proof("client", theirs, &ours).ok_or("no proof can be made")?;
        stream
            .write_all(format!("{ours} {proof}\n").as_bytes())
            .map_err(|error| error.to_string())?;
        if token.accepts(&line(stream)?, "server", theirs, &ours) {
            Ok(())
        } else {
            Err("it does not know the token either".into())
        }
    };
    talk().map_err(|problem| {
        Error::Request(format!("the host does not admit this end: {problem}; check the token"))
    })
}

/// One line, byte by byte, so that nothing behind it is lost.
fn line(stream: &mut Stream) -> std::result::Result<String, String> {
    let end = Instant::now() + WAIT;
    let mut line = Vec::new();
    while Instant::now() < end {
        let mut byte = [0];
        match stream.read(&mut byte).map_err(|error| error.to_string())? {
            None => {}
            Some(0) => return Err("it hung up".into()),
            Some(_) if byte[0] == b'\n' => {
                return String::from_utf8(line).map_err(|_| "it sends no text".into());
            }
            Some(_) if line.len() >= LONGEST_LINE => return Err("its line does not end".into()),
            Some(_) => line.push(byte[0]),
        }
    }
    Err("it says nothing".into())
}

fn nonce() -> std::result::Result<String, String> {
    let mut bytes = [0; NONCE_BYTES];
    getrandom::fill(&mut bytes).map_err(|error| format!("there is no randomness: {error}"))?;
    Ok(hex(&bytes))
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u32>> = text.chars().map(|digit| digit.to_digit(16)).collect();
    let digits = digits.filter(|digits| digits.len().is_multiple_of(2))?;
    Some(digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect())
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn pair() -> (Stream, Stream) {
        let (a, b) = UnixStream::pair().unwrap();
        (Stream::unix(a).unwrap(), Stream::unix(b).unwrap())
    }

    fn token(text: &str) -> Token {
        Token(text.as_bytes().to_vec())
    }

    #[test]
    fn who_knows_the_token_comes_in_and_nobody_else() {
        let right = token("0123456789abcdef");
        for (client, admitted) in [(right.clone(), true), (token("0123456789abcdeX"), false)] {
            let (mut server, mut other) = pair();
            let known = right.clone();
            let thread = std::thread::spawn(move || {
                let result = admit(&mut server, &known);
                server.shutdown();
                result
            });
            assert_eq!(present(&mut other, &client).is_ok(), admitted);
            assert_eq!(thread.join().unwrap().is_ok(), admitted);
        }
    }

    #[test]
    fn noise_is_not_admitted() {
        let long = [b'a'; 500];
        for noise in [&b"\n"[..], b"x y\n", &long, b"\xff\xfe\n"] {
            let (mut server, mut client) = pair();
            client.write_all(noise).unwrap();
            assert!(admit(&mut server, &token("0123456789abcdef")).is_err());
        }
    }

    #[test]
    fn short_tokens_are_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "short\n").unwrap();
        assert!(Token::read(file.path()).unwrap_err().to_string().contains("openssl"));
    }
}
