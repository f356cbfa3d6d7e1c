//! Byte buffers with room in front for a header, and the pool that their storage comes from.
//!
//! A buffer is empty of storage until it is used, grows in classes while reads fill it, and gives its storage back
//! when its tunnel falls silent: that is how an idle tunnel stays small and a busy one fast (`manual/architecture.md`).

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use memmap2::MmapMut;

/// Room kept in front of the bytes: a frame header (14 at most) and a chunk header (4 at most), rounded up.
pub(crate) const HEADROOM: usize = 32;

/// Room that a read leaves at the end, for what TLS adds to it: with it the sealed bytes fit into storage of the same size,
/// and those of the largest into one chunk.
const TAIL: usize = 1 << 10;

/// The sizes of storage. A silent tunnel that wakes up starts small; one whose reads fill the buffer moves up.
const CLASSES: [usize; 4] = [16 << 10, 64 << 10, 256 << 10, 512 << 10];

/// How many pieces of storage of each class are kept for the next tunnel: 4 MiB in all. Of the smallest as many as a burst
/// of new tunnels needs for its heads.
const KEPT: [usize; 4] = [64, 16, 4, 2];

/// Up to how many bytes lent out in all a buffer may grow into each class: few busy tunnels get few large reads, many get
/// many small ones, and the memory of all together stays what a handful would take.
const GRANTED: [usize; 4] = [usize::MAX, usize::MAX, 12 << 20, 8 << 20];

/// A class of storage, from the smallest up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd)]
pub(crate) struct Class(u8);

impl Class {
    /// The next larger class, or the largest.
    pub(crate) fn larger(self) -> Self {
        Self((self.0 + 1).min(CLASSES.len() as u8 - 1))
    }

    fn index(self) -> usize {
        usize::from(self.0).min(CLASSES.len() - 1)
    }
}

/// Storage that ended tunnels and silent ones gave back, shared by all tunnels of one relay or gateway.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pool(Arc<Shelves>);

#[derive(Debug, Default)]
struct Shelves {
    kept: [Mutex<Vec<Storage>>; CLASSES.len()],
    /// Bytes that are in use.
    lent: AtomicUsize,
}

/// Initialised memory of one class, or of an odd size that is not kept.
#[derive(Debug)]
enum Storage {
    /// The kernel's own: what is given back is given back, and no allocator holds it for a thread that is gone.
    Pages(MmapMut),
    /// Where the kernel maps no more.
    Heap(Box<[u8]>),
}

impl Storage {
    fn fresh(size: usize) -> Self {
        MmapMut::map_anon(size).map_or_else(
            |_| Self::Heap(vec![0; size].into_boxed_slice()),
            Self::Pages,
        )
    }
}

impl Default for Storage {
    fn default() -> Self {
        Self::Heap(Box::default())
    }
}

impl Deref for Storage {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Pages(pages) => pages,
            Self::Heap(bytes) => bytes,
        }
    }
}

impl DerefMut for Storage {
    fn deref_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Pages(pages) => pages,
            Self::Heap(bytes) => bytes,
        }
    }
}

impl Pool {
    /// Storage of at least `least` bytes.
    fn take(&self, least: usize) -> Storage {
        let class = CLASSES.iter().position(|&size| size >= least);
        let kept = class.and_then(|class| {
            let kept = &self.0.kept[class];
            kept.lock().unwrap_or_else(PoisonError::into_inner).pop()
        });
        let size = class.map_or(least, |class| CLASSES[class]);
        let storage = kept.unwrap_or_else(|| Storage::fresh(size));
        self.0.lent.fetch_add(storage.len(), Ordering::Relaxed);
        storage
    }

    fn give_back(&self, storage: Storage) {
        self.0.lent.fetch_sub(storage.len(), Ordering::Relaxed);
        let Some(class) = CLASSES.iter().position(|&size| size == storage.len()) else {
            return;
        };
        let mut kept = self.0.kept[class]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT[class] {
            kept.push(storage);
        }
    }

    /// The size that a buffer in search of `class` may have at this time.
    fn granted(&self, class: Class) -> usize {
        let lent = self.0.lent.load(Ordering::Relaxed);
        let mut index = class.index();
        while lent > GRANTED[index] {
            index -= 1;
        }
        CLASSES[index]
    }
}

/// Bytes that are on their way: taken from the front, added at the back, with room for a header before the first.
#[derive(Debug)]
pub(crate) struct Buffer {
    pool: Pool,
    storage: Storage,
    start: usize,
    end: usize,
}

impl Buffer {
    /// A buffer without storage.
    pub(crate) fn new(pool: &Pool) -> Self {
        Self {
            pool: pool.clone(),
            storage: Storage::default(),
            start: HEADROOM,
            end: HEADROOM,
        }
    }

    /// How many bytes are in it.
    pub(crate) fn len(&self) -> usize {
        self.end - self.start
    }

    /// Whether nothing is in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// The bytes in it.
    pub(crate) fn filled(&self) -> &[u8] {
        self.storage.get(self.start..self.end).unwrap_or_default()
    }

    /// The bytes in it, to be changed in place.
    pub(crate) fn filled_mut(&mut self) -> &mut [u8] {
        self.storage
            .get_mut(self.start..self.end)
            .unwrap_or_default()
    }

    /// The free room behind the bytes, in storage of `class` where there is memory for it, less than that where there is not.
    /// It is empty when the buffer is full: what is in it must go out first.
    pub(crate) fn room(&mut self, class: Class) -> &mut [u8] {
        if self.storage.len() < CLASSES[class.index()] {
            let size = self.pool.granted(class);
            if self.storage.len() < size {
                self.replace_storage(size);
            }
        }
        if self.start > HEADROOM && self.len() <= self.storage.len() / 8 {
            // Cheap now, and the next read is a whole one.
            self.compact();
        }
        let end = self.storage.len().saturating_sub(TAIL);
        self.storage.get_mut(self.end..end).unwrap_or_default()
    }

    /// Makes sure of at least `more` bytes of room, growing the storage beyond every class if it must.
    pub(crate) fn reserve(&mut self, more: usize) -> &mut [u8] {
        if self.storage.len() - self.end.min(self.storage.len()) < more {
            if HEADROOM + self.len() + more <= self.storage.len() {
                self.compact();
            } else {
                self.replace_storage(HEADROOM + self.len() + more);
            }
        }
        self.storage.get_mut(self.end..).unwrap_or_default()
    }

    /// Counts `n` bytes of the room as filled.
    pub(crate) fn advance(&mut self, n: usize) {
        self.end = (self.end + n).min(self.storage.len());
    }

    /// Takes `n` bytes off the front.
    pub(crate) fn consume(&mut self, n: usize) {
        self.start += n.min(self.len());
        if self.is_empty() {
            self.start = HEADROOM;
            self.end = HEADROOM;
        }
    }

    /// Drops all but the first `n` bytes.
    pub(crate) fn truncate(&mut self, n: usize) {
        self.end = self.start + n.min(self.len());
    }

    /// Adds a copy of `bytes` at the back.
    pub(crate) fn extend(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.reserve(bytes.len())[..bytes.len()].copy_from_slice(bytes);
        self.advance(bytes.len());
    }

    /// Puts `header` before the first byte. At most [`HEADROOM`] bytes, and only once until the buffer was emptied.
    pub(crate) fn prepend(&mut self, header: &[u8]) {
        debug_assert!(header.len() <= self.start);
        self.start -= header.len();
        self.storage[self.start..self.start + header.len()].copy_from_slice(header);
    }

    /// Whether a header of `n` bytes fits before the first byte.
    pub(crate) fn has_headroom(&self, n: usize) -> bool {
        self.start >= n && !self.storage.is_empty()
    }

    /// Gives the storage back if nothing is in it.
    pub(crate) fn release_buffers(&mut self) {
        if self.is_empty() && !self.storage.is_empty() {
            self.pool.give_back(std::mem::take(&mut self.storage));
        }
    }

    fn compact(&mut self) {
        self.storage.copy_within(self.start..self.end, HEADROOM);
        self.end = HEADROOM + self.len();
        self.start = HEADROOM;
    }

    fn replace_storage(&mut self, least: usize) {
        let mut larger = self.pool.take(least);
        let len = self.len();
        larger[HEADROOM..HEADROOM + len].copy_from_slice(self.filled());
        let old = std::mem::replace(&mut self.storage, larger);
        self.start = HEADROOM;
        self.end = HEADROOM + len;
        self.pool.give_back(old);
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.pool.give_back(std::mem::take(&mut self.storage));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_bytes_in_order_through_growth_compaction_and_consumption() {
        let mut buffer = Buffer::new(&Pool::default());
        let mut expected = std::collections::VecDeque::new();
        for round in 0..200_usize {
            let bytes: Vec<u8> = (0..round * 37 % 5000).map(|i| (i + round) as u8).collect();
            buffer.extend(&bytes);
            expected.extend(bytes);
            let taken = round * 31 % (buffer.len() + 1);
            assert_eq!(
                buffer.filled()[..taken],
                expected.drain(..taken).collect::<Vec<_>>()
            );
            buffer.consume(taken);
        }
        assert_eq!(buffer.filled(), expected.make_contiguous());
    }

    #[test]
    fn a_header_goes_in_front_of_fresh_bytes_without_a_copy() {
        let mut buffer = Buffer::new(&Pool::default());
        let room = buffer.room(Class::default());
        room[..3].copy_from_slice(b"abc");
        buffer.advance(3);
        assert!(buffer.has_headroom(2));
        buffer.prepend(b"> ");
        assert_eq!(buffer.filled(), b"> abc");
    }

    #[test]
    fn a_full_buffer_offers_no_room_until_a_larger_class_is_asked_for() {
        let mut buffer = Buffer::new(&Pool::default());
        let n = buffer.room(Class::default()).len();
        buffer.advance(n);
        assert!(buffer.room(Class::default()).is_empty());
        let larger = CLASSES[1] - HEADROOM - TAIL;
        assert_eq!(buffer.room(Class::default().larger()).len(), larger - n);
        buffer.consume(n - 1);
        assert_eq!(
            buffer.room(Class::default().larger()).len(),
            larger - 1,
            "a small rest moves to the front"
        );
    }

    #[test]
    fn shed_storage_is_used_again() {
        let pool = Pool::default();
        let mut buffer = Buffer::new(&pool);
        buffer.extend(b"x");
        buffer.release_buffers();
        assert_eq!(buffer.filled(), b"x", "bytes are never release_buffers");
        buffer.consume(1);
        buffer.release_buffers();
        assert_eq!(pool.0.kept[0].lock().map(|kept| kept.len()).ok(), Some(1));
        buffer.extend(b"y");
        assert_eq!(buffer.filled(), b"y");
        assert_eq!(pool.0.kept[0].lock().map(|kept| kept.len()).ok(), Some(0));
    }

    #[test]
    fn sealed_bytes_of_a_full_read_fit_into_storage_of_the_same_class_and_into_one_chunk() {
        for (index, size) in CLASSES.into_iter().enumerate() {
            let pool = Pool::default();
            let read = Buffer::new(&pool).room(Class(index as u8)).len();
            let sealed = read + read.div_ceil(16 << 10) * 30 + HEADROOM;
            assert!(HEADROOM + sealed <= size, "{sealed} of {size}");
            assert!(sealed <= crate::tunnel::chunk::MAX_DATA);
        }
    }

    #[test]
    fn many_busy_buffers_get_less_each_and_more_again_when_others_are_gone() {
        let pool = Pool::default();
        let largest = Class(CLASSES.len() as u8 - 1);
        let mut buffers: Vec<_> = (0..200).map(|_| Buffer::new(&pool)).collect();
        for buffer in &mut buffers {
            assert!(!buffer.room(largest).is_empty());
        }
        let all: usize = buffers.iter().map(|buffer| buffer.storage.len()).sum();
        assert!(all < (12 << 20) + 200 * CLASSES[1] + (512 << 10), "{all}");
        let mut last = buffers.pop().unwrap();
        assert_eq!(last.storage.len(), CLASSES[1]);
        drop(buffers);
        last.room(largest);
        assert_eq!(last.storage.len(), CLASSES[3]);
        drop(last);
        assert_eq!(pool.0.lent.load(Ordering::Relaxed), 0);
    }
}
