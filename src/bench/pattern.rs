//! The bytes that every transfer carries: they depend on their position, so that a lost, doubled or misplaced piece shows.
//!
//! A check of equality, not a hash: comparing runs at the speed of memory, so that the load generator stays cheap.

/// How many bytes go to one system call at most: as much as loopback takes at once, so that the load generator costs little
/// beside what it measures.
pub(crate) const PIECE: usize = 256 * 1024;

/// After how many bytes the pattern repeats: a prime, so that a piece displaced by a buffer's size never falls into step.
const PERIOD: usize = 131_071;

/// One period of noise and as much of the next ones as a piece can need from any offset.
#[derive(Debug)]
pub(crate) struct Pattern(Vec<u8>);

impl Pattern {
    /// The same noise each time: a run can be repeated.
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

    /// The next piece of a stream that has come to `position`.
    pub(crate) fn piece(&self, position: u64) -> &[u8] {
        let from = (position % PERIOD as u64) as usize;
        &self.0[from..from + PIECE]
    }

    /// Whether `received`, a piece at most, is what stands at `position`.
    pub(crate) fn matches(&self, position: u64, received: &[u8]) -> bool {
        self.piece(position).starts_with(received)
    }
}
