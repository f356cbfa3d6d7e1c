//! The protocol between a load and its origin (see the page Performance): the origin greets, the
//! load sends one line, and then bytes flow. No I/O.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// The greeting of an origin. No other server sends it.
pub(super) const GREETING: &[u8] = b"upstreamproxy-bench 1\n";
/// The longest request line of a load, with its line feed.
pub(super) const LINE_LIMIT: usize = 33;
/// The longest transfer that may be requested: an origin does not send without end.
pub(super) const LONGEST: Duration = Duration::from_secs(60);

/// The request of a load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// The origin echoes everything.
    Echo,
    /// The origin sends the pattern for this time, then the end of the stream.
    Down(Duration),
    /// The load sends the pattern and the end of the stream; the origin answers with a line that
    /// contains the number of bytes received.
    Up,
    /// Both at once; the origin closes when everything is sent and received.
    Both(Duration),
}

impl fmt::Display for Work {
    /// The request line, without the line feed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Echo => f.write_str("echo"),
            Self::Down(time) => write!(f, "down {}", time.as_millis()),
            Self::Up => f.write_str("up"),
            Self::Both(time) => write!(f, "both {}", time.as_millis()),
        }
    }
}

impl FromStr for Work {
    type Err = ();

    fn from_str(line: &str) -> Result<Self, ()> {
        let (word, millis) = match line.split_once(' ') {
            Some((word, millis)) => (word, Some(millis.parse::<u32>().map_err(|_| ())?)),
            None => (line, None),
        };
        let time = millis.map(|millis| Duration::from_millis(millis.into()));
        match (word, time) {
            ("echo", None) => Ok(Self::Echo),
            ("up", None) => Ok(Self::Up),
            ("down", Some(time)) if time <= LONGEST => Ok(Self::Down(time)),
            ("both", Some(time)) if time <= LONGEST => Ok(Self::Both(time)),
            _ => Err(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_understood_and_fits_its_line() {
        for work in [
            Work::Echo,
            Work::Up,
            Work::Down(Duration::from_millis(1500)),
            Work::Both(LONGEST),
        ] {
            let line = work.to_string();
            assert_eq!(line.parse(), Ok(work), "{line}");
            assert!(line.len() < LINE_LIMIT);
        }
    }

    #[test]
    fn what_is_not_in_the_list_is_refused() {
        for line in [
            "",
            "down",
            "down 60001",
            "down -1",
            "down 1 1",
            "echo 1",
            "up 5",
            "GET / HTTP/1.1\r",
        ] {
            assert_eq!(line.parse::<Work>(), Err(()), "{line:?}");
        }
    }
}
