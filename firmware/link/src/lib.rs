//! The scanner link: what a slide scanner's board, its camera and the host that predicts say to each other.
//!
//! Both ends compile this crate. It needs neither `std` nor an allocator, knows no transport and no clock: bytes and
//! milliseconds come in, messages and bytes go out, over a UART, TCP or a socket alike.
//!
//! - [`message`]: the messages, serde types in postcard encoding with sizes bounded at compile time by [`limits`];
//! - [`schema`]: the key that makes drift between two ends visible in the handshake;
//! - [`frame`]: COBS frames with a CRC-32;
//! - [`session`]: handshake, sequence numbers, acknowledgement and retry, heartbeats.
//!
//! # Why not postcard-rpc
//!
//! [postcard-rpc] 0.12 was looked at first. It is made for request and response over a transport that does not lose
//! data: its frames carry no CRC, nothing is acknowledged or sent again, a duplicate is delivered twice, and a lost
//! peer is found by the transport alone. Its host client needs tokio and its board side embassy, which a host built
//! of plain threads and a board without an executor would both have to take in. So only the half this link needs is
//! used: [postcard] for the encoding and its `MaxSize` for the buffers, [postcard-schema] for the schema key, which
//! is the same hash postcard-rpc compares.
//!
//! # An end
//!
//! ```
//! use diffbulk_link::message::{FromHost, Hello, Role, ToHost};
//! use diffbulk_link::session::{Event, HostSession, Timing};
//!
//! let hello = Hello {
//!     role: Role::Host,
//!     version: "0.1.0".try_into().unwrap(),
//!     model: None,
//!     panel: Default::default(),
//!     resume: None,
//! };
//! let mut session: HostSession = HostSession::new(Timing::default(), 0x5eed_0000, hello);
//! let (now_ms, received, mut out) = (0, [0u8; 0], [0; HostSession::OUT]);
//!
//! let mut input = &received[..];
//! while let Some(event) = session.receive(now_ms, &mut input) {
//!     match event {
//!         Event::Up(peer) => println!("{:?} {}", peer.role, peer.version),
//!         Event::Message(ToHost::Tile(event)) => println!("tile {}", event.shot.tile.0),
//!         other => println!("{other:?}"),
//!     }
//! }
//! loop {
//!     match session.transmit(now_ms, &mut out) {
//!         0 => break,
//!         len => { /* write out[..len] */ assert!(out[..len].ends_with(&[0])) }
//!     }
//! }
//! ```
//!
//! [postcard]: https://docs.rs/postcard
//! [postcard-rpc]: https://docs.rs/postcard-rpc
//! [postcard-schema]: https://docs.rs/postcard-schema

#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod frame;
pub mod limits;
pub mod message;
pub mod schema;
pub mod session;
pub mod units;

pub use heapless;
