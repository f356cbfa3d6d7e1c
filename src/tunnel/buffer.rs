//! Byte buffers with room for a header in front, and the pool of their storage.
//!
//! A buffer has no storage until it is used. Its storage grows in size classes while reads fill it,
//! and returns to the pool when its tunnel becomes silent. So an idle tunnel uses little memory and
//! a busy one makes large reads (`manual/architecture.md`, Memory).

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use memmap2::MmapMut;

/// Bytes reserved in front of the data: a frame header (at most 14) and a chunk header (at most 4),
/// rounded up.
pub(crate) const HEADROOM: usize = 32;

/// Bytes that a read leaves free at the end, for the overhead of TLS records. The encoded bytes of
/// a full read then fit into storage of the same class, and those of the largest class into one
/// chunk.
const TAIL: usize = 1 << 10;

/// The sizes of the storage classes. A tunnel starts with the smallest and moves to the next one
/// when a read fills the buffer.
const CLASSES: [usize; 4] = [16 << 10, 64 << 10, 256 << 10, 512 << 10];

/// The maximum number of unused pieces of storage per class: 4 MiB in total. Of the smallest class
/// the pool keeps as many as a burst of new tunnels needs for its request heads.
const FREE_LIMITS: [usize; 4] = [64, 16, 4, 2];

/// A buffer may grow into a class only while the storage in use by all buffers is at most this many
/// bytes. So a few busy tunnels make large reads, and many busy tunnels make small reads; the total
/// memory stays bounded.
const GROWTH_LIMITS: [usize; 4] = [usize::MAX, usize::MAX, 12 << 20, 8 << 20];

/// A storage size; the default is the smallest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd)]
pub(crate) struct SizeClass(u8);

impl SizeClass {
    /// The next larger class, or the largest.
    pub(crate) fn larger(self) -> Self {
        Self((self.0 + 1).min(CLASSES.len() as u8 - 1))
    }

    fn index(self) -> usize {
        usize::from(self.0).min(CLASSES.len() - 1)
    }
}

/// Unused storage, shared by all tunnels of one relay or gateway.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pool(Arc<BufferPoolState>);

#[derive(Debug, Default)]
struct BufferPoolState {
    free: [Mutex<Vec<Storage>>; CLASSES.len()],
    /// Bytes of storage that buffers use now.
    in_use: AtomicUsize,
}

/// Initialised memory: of the size of a class, or of another size that the pool does not keep.
#[derive(Debug)]
enum Storage {
    /// From mmap(2): when dropped, it returns to the kernel. An allocator could keep it for a
    /// thread that no longer exists.
    Pages(MmapMut),
    /// From the allocator, if mmap(2) fails.
    Heap(Box<[u8]>),
}

impl Storage {
    fn allocate(size: usize) -> Self {
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
        let free = class.and_then(|class| {
            let free = &self.0.free[class];
            free.lock().unwrap_or_else(PoisonError::into_inner).pop()
        });
        let size = class.map_or(least, |class| CLASSES[class]);
        let storage = free.unwrap_or_else(|| Storage::allocate(size));
        self.0.in_use.fetch_add(storage.len(), Ordering::Relaxed);
        storage
    }

    fn put_back(&self, storage: Storage) {
        self.0.in_use.fetch_sub(storage.len(), Ordering::Relaxed);
        let Some(class) = CLASSES.iter().position(|&size| size == storage.len()) else {
            return;
        };
        let mut free = self.0.free[class]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if free.len() < FREE_LIMITS[class] {
            free.push(storage);
        }
    }

    /// The storage size that a buffer that requests `class` may use now.
    fn allowed_size(&self, class: SizeClass) -> usize {
        let in_use = self.0.in_use.load(Ordering::Relaxed);
        let mut index = class.index();
        while in_use > GROWTH_LIMITS[index] {
            index -= 1;
        }
        CLASSES[index]
    }
}

/// A queue of bytes: consumed from the front, extended at the back, with room for a header in
/// front.
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

    /// An empty buffer of the same pool.
    pub(crate) fn sibling(&self) -> Self {
        Self::new(&self.pool)
    }

    /// The number of bytes in the buffer.
    pub(crate) fn len(&self) -> usize {
        self.end - self.start
    }

    /// Whether the buffer contains no bytes.
    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// The bytes in the buffer.
    pub(crate) fn filled(&self) -> &[u8] {
        self.storage.get(self.start..self.end).unwrap_or_default()
    }

    /// The bytes in the buffer, for changes in place.
    pub(crate) fn filled_mut(&mut self) -> &mut [u8] {
        self.storage
            .get_mut(self.start..self.end)
            .unwrap_or_default()
    }

    /// The free room behind the bytes. The storage grows to `class` first, or to a smaller class if
    /// much storage is in use. The room is empty if the buffer is full; consume bytes first.
    pub(crate) fn room(&mut self, class: SizeClass) -> &mut [u8] {
        if self.storage.len() < CLASSES[class.index()] {
            let size = self.pool.allowed_size(class);
            if self.storage.len() < size {
                self.replace_storage(size);
            }
        }
        if self.start > HEADROOM && self.len() <= self.storage.len() / 8 {
            // Moving few bytes is cheap, and the next read can use the whole storage.
            self.compact();
        }
        let end = self.storage.len().saturating_sub(TAIL);
        self.storage.get_mut(self.end..end).unwrap_or_default()
    }

    /// Free room of at least `more` bytes. The storage grows beyond the largest class if necessary.
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

    /// Marks the first `n` bytes of the room as filled.
    pub(crate) fn advance(&mut self, n: usize) {
        self.end = (self.end + n).min(self.storage.len());
    }

    /// Removes `n` bytes from the front.
    pub(crate) fn consume(&mut self, n: usize) {
        self.start += n.min(self.len());
        if self.is_empty() {
            self.start = HEADROOM;
            self.end = HEADROOM;
        }
    }

    /// Keeps the first `n` bytes and drops the rest.
    pub(crate) fn truncate(&mut self, n: usize) {
        self.end = self.start + n.min(self.len());
    }

    /// Appends a copy of `bytes`.
    pub(crate) fn extend(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.reserve(bytes.len())[..bytes.len()].copy_from_slice(bytes);
        self.advance(bytes.len());
    }

    /// Inserts `header` before the first byte. It needs [`Self::has_headroom`].
    pub(crate) fn prepend(&mut self, header: &[u8]) {
        debug_assert!(header.len() <= self.start);
        self.start -= header.len();
        self.storage[self.start..self.start + header.len()].copy_from_slice(header);
    }

    /// Whether a header of `n` bytes fits before the first byte.
    pub(crate) fn has_headroom(&self, n: usize) -> bool {
        self.start >= n && !self.storage.is_empty()
    }

    /// Returns the storage to the pool if the buffer is empty.
    pub(crate) fn release(&mut self) {
        if self.is_empty() && !self.storage.is_empty() {
            self.pool.put_back(std::mem::take(&mut self.storage));
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
        self.pool.put_back(old);
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.pool.put_back(std::mem::take(&mut self.storage));
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
        let room = buffer.room(SizeClass::default());
        room[..3].copy_from_slice(b"abc");
        buffer.advance(3);
        assert!(buffer.has_headroom(2));
        buffer.prepend(b"> ");
        assert_eq!(buffer.filled(), b"> abc");
    }

    #[test]
    fn a_full_buffer_offers_no_room_until_a_larger_class_is_asked_for() {
        let mut buffer = Buffer::new(&Pool::default());
        let n = buffer.room(SizeClass::default()).len();
        buffer.advance(n);
        assert!(buffer.room(SizeClass::default()).is_empty());
        let larger = CLASSES[1] - HEADROOM - TAIL;
        assert_eq!(buffer.room(SizeClass::default().larger()).len(), larger - n);
        buffer.consume(n - 1);
        assert_eq!(
            buffer.room(SizeClass::default().larger()).len(),
            larger - 1,
            "a small rest moves to the front"
        );
    }

    #[test]
    fn released_storage_is_used_again() {
        let pool = Pool::default();
        let mut buffer = Buffer::new(&pool);
        buffer.extend(b"x");
        buffer.release();
        assert_eq!(buffer.filled(), b"x", "bytes are never release_buffers");
        buffer.consume(1);
        buffer.release();
        assert_eq!(pool.0.free[0].lock().map(|free| free.len()).ok(), Some(1));
        buffer.extend(b"y");
        assert_eq!(buffer.filled(), b"y");
        assert_eq!(pool.0.free[0].lock().map(|free| free.len()).ok(), Some(0));
    }

    #[test]
    fn encoded_bytes_of_a_full_read_fit_into_storage_of_the_same_class_and_into_one_chunk() {
        for (index, size) in CLASSES.into_iter().enumerate() {
            let pool = Pool::default();
            let read = Buffer::new(&pool).room(SizeClass(index as u8)).len();
            let encoded = read + read.div_ceil(16 << 10) * 30 + HEADROOM;
            assert!(HEADROOM + encoded <= size, "{encoded} of {size}");
            assert!(encoded <= crate::tunnel::chunk::MAX_DATA);
        }
    }

    #[test]
    fn many_busy_buffers_get_less_each_and_more_again_when_others_are_gone() {
        let pool = Pool::default();
        let largest = SizeClass(CLASSES.len() as u8 - 1);
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
        assert_eq!(pool.0.in_use.load(Ordering::Relaxed), 0);
    }
}
