//! What a load and its origin say to each other, on the page Performance: the origin speaks first, the load answers with one
//! line, and then bytes go. Without I/O.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// What an origin says to whoever comes, and nobody else does.
pub(super) const GREETING: &[u8] = b"upstreamproxy-bench 1\n";
/// The longest line that a load says.
pub(super) const LINE_LIMIT: usize = 32;
/// The longest transfer that may be asked for: an origin sends for nobody for ever.
pub(super) const LONGEST: Duration = Duration::from_secs(60);

/// What a load asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// All that comes goes back.
    Echo,
    /// The origin sends the pattern for so long, then ends.
    Down(Duration),
    /// The load sends the pattern and ends; the origin answers with a line that says how many bytes came.
    Up,
    /// Both at once; the origin ends when all has gone down and all has come up.
    Both(Duration),
}

impl fmt::Display for Work {
    /// As it is sent, without the line's end.
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
