//! A stream of bytes that betrays every loss, swap and repetition.
//!
//! In: a position. Out: the block that belongs there: a fixed random block stamped with its number; and the checksum of all
//! blocks together. Cheap enough to send a gigabyte with.

use rand::rngs::StdRng;
use rand::{RngCore as _, SeedableRng as _};
use twox_hash::XxHash64;

/// The length of a block.
pub const BLOCK_BYTES: usize = 64 * 1024;

/// The blocks of a stream, in order, and their checksum so far.
pub struct Pattern {
    block: Vec<u8>,
    left: u64,
    number: u64,
    checksum: Checksum,
}

/// A checksum that is fed piece by piece; where the pieces end does not matter.
pub struct Checksum(XxHash64);

impl Checksum {
    /// Of nothing yet.
    pub fn new() -> Checksum {
        Checksum(XxHash64::with_seed(0))
    }

    /// Adds bytes.
    pub fn add(&mut self, bytes: &[u8]) {
        std::hash::Hasher::write(&mut self.0, bytes);
    }

    /// The sum of everything added.
    pub fn value(&self) -> u64 {
        std::hash::Hasher::finish(&self.0)
    }
}

impl Default for Checksum {
    fn default() -> Checksum {
        Checksum::new()
    }
}

impl Pattern {
    /// A stream of `length` bytes.
    pub fn new(length: u64) -> Pattern {
        let mut block = vec![0; BLOCK_BYTES];
        StdRng::seed_from_u64(1).fill_bytes(&mut block);
        Pattern { block, left: length, number: 0, checksum: Checksum::new() }
    }

    /// The next block; the last one is shorter, and then there is none.
    pub fn next_block(&mut self) -> Option<&[u8]> {
        if self.left == 0 {
            return None;
        }
        self.block[..8].copy_from_slice(&self.number.to_be_bytes());
        let length = usize::try_from(self.left).unwrap_or(usize::MAX).min(BLOCK_BYTES);
        self.number += 1;
        self.left -= length as u64;
        let block = &self.block[..length];
        self.checksum.add(block);
        Some(block)
    }

    /// The checksum of the blocks given out so far.
    pub fn checksum(&self) -> u64 {
        self.checksum.value()
    }
}

/// The checksum of a whole stream of `length` bytes.
pub fn checksum_of(length: u64) -> u64 {
    let mut pattern = Pattern::new(length);
    while pattern.next_block().is_some() {}
    pattern.checksum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_has_its_length_and_a_checksum_of_its_own() {
        let length = |length| {
            let mut pattern = Pattern::new(length);
            let mut total = 0;
            while let Some(block) = pattern.next_block() {
                total += block.len();
            }
            total
        };
        assert_eq!(length(0), 0);
        assert_eq!(length(BLOCK_BYTES as u64 + 1), BLOCK_BYTES + 1);
        assert_ne!(checksum_of(1000), checksum_of(1001));
    }

    #[test]
    fn swapped_blocks_change_the_checksum() {
        let mut pattern = Pattern::new(2 * BLOCK_BYTES as u64);
        let first = pattern.next_block().unwrap().to_vec();
        let second = pattern.next_block().unwrap().to_vec();
        let sum = |blocks: [&[u8]; 2]| {
            let mut checksum = Checksum::new();
            blocks.iter().for_each(|block| checksum.add(block));
            checksum.value()
        };
        assert_eq!(sum([&first, &second]), pattern.checksum());
        assert_ne!(sum([&second, &first]), pattern.checksum());
    }
}
