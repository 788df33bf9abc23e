//! A serial port as a file that never blocks for long.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::termios::{self, BaudRate, ControlFlags, SetArg, SpecialCharacterIndices};

/// Opens the port raw: eight bits, no parity, no flow control, no echo.
pub(super) fn open(path: &Path, baud: u32) -> io::Result<File> {
    let rate = rate(baud).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{baud} baud is not a speed that is known; use 115200 or 921600"),
        )
    })?;
    let flags = nix::libc::O_NOCTTY | nix::libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?;
    // Two programs that read the same port get half of the bytes each. (As pyserial and picocom do.)
    match file.try_lock() {
        Err(std::fs::TryLockError::WouldBlock) => {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                "another program has this port open; stop it first",
            ));
        }
        // A port that cannot be locked is still a port.
        Ok(()) | Err(std::fs::TryLockError::Error(_)) => {}
    }
    let mut settings = termios::tcgetattr(&file)?;
    termios::cfmakeraw(&mut settings);
    settings.control_flags.insert(ControlFlags::CLOCAL | ControlFlags::CREAD);
    settings.control_flags.remove(ControlFlags::CRTSCTS | ControlFlags::CSTOPB);
    settings.control_chars[SpecialCharacterIndices::VMIN as usize] = 0;
    settings.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
    termios::cfsetspeed(&mut settings, rate)?;
    termios::tcsetattr(&file, SetArg::TCSANOW, &settings)?;
    Ok(file)
}

fn rate(baud: u32) -> Option<BaudRate> {
    Some(match baud {
        9_600 => BaudRate::B9600,
        19_200 => BaudRate::B19200,
        38_400 => BaudRate::B38400,
        57_600 => BaudRate::B57600,
        115_200 => BaudRate::B115200,
        230_400 => BaudRate::B230400,
        #[cfg(any(target_os = "linux", target_os = "android"))]
        460_800 => BaudRate::B460800,
        #[cfg(any(target_os = "linux", target_os = "android"))]
        921_600 => BaudRate::B921600,
        #[cfg(any(target_os = "linux", target_os = "android"))]
        1_000_000 => BaudRate::B1000000,
        #[cfg(any(target_os = "linux", target_os = "android"))]
        2_000_000 => BaudRate::B2000000,
        #[cfg(any(target_os = "linux", target_os = "android"))]
        4_000_000 => BaudRate::B4000000,
        _ => return None,
    })
}

/// Waits for `what`; true when it is there.
fn wait(file: &File, what: PollFlags, most: Duration) -> io::Result<bool> {
    let mut descriptors = [PollFd::new(file.as_fd(), what)];
    let timeout = PollTimeout::try_from(most).unwrap_or(PollTimeout::MAX);
    Ok(poll(&mut descriptors, timeout)? > 0)
}

pub(super) fn read(file: &mut File, buffer: &mut [u8], most: Duration) -> io::Result<usize> {
    if !wait(file, PollFlags::POLLIN, most)? {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    // Ready and yet nothing to read: the port is gone.
    file.read(buffer)
}

pub(super) fn write_all(file: &mut File, mut bytes: &[u8], most: Duration) -> io::Result<()> {
    let end = Instant::now() + most;
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let left = end.saturating_duration_since(Instant::now());
                if left.is_zero() || !wait(file, PollFlags::POLLOUT, left)? {
                    return Err(io::ErrorKind::TimedOut.into());
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
