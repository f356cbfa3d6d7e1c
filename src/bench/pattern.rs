//! The bytes of every transfer. They depend on their position, so that a lost, repeated or
//! misplaced piece is detected.
//!
//! They are compared, not hashed: a comparison runs at memory speed, so the load generator costs
//! little.

/// The maximum number of bytes in one system call: as much as loopback accepts at once.
pub(crate) const PIECE: usize = 256 * 1024;

/// The period of the pattern: a prime, so that a piece displaced by the size of a buffer never
/// matches.
const PERIOD: usize = 131_071;

/// One period of noise, and enough of the next periods for a piece at any offset.
#[derive(Debug)]
pub(crate) struct TestPattern(Vec<u8>);

impl TestPattern {
    /// A fixed seed: runs are repeatable.
    pub(crate) fn new() -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let period: Vec<u8> = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_be_bytes()
        })
        .flatten()
        .take(PERIOD)
        .collect();
        Self(
            period
                .iter()
                .copied()
                .cycle()
                .take(PERIOD + PIECE)
                .collect(),
        )
    }

    /// The next piece of a stream at `position`.
    pub(crate) fn piece(&self, position: u64) -> &[u8] {
        let from = (position % PERIOD as u64) as usize;
        &self.0[from..from + PIECE]
    }

    /// Whether `received`, at most one piece long, matches the pattern at `position`.
    pub(crate) fn matches(&self, position: u64, received: &[u8]) -> bool {
        self.piece(position).starts_with(received)
    }
}
