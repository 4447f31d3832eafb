//! Random data that a workload holds in shared memory, which CRIU reads in the freeze: what a test does in the middle
//! of a freeze without rounds finds it there.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;

use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::hog::Words;

/// What is compared at once, bytes.
const CHUNK: usize = 1 << 20;

/// So much random data.
#[derive(Debug)]
pub struct Ballast {
    file: File,
    seed: u64,
    len: u64,
}

impl Ballast {
    /// Makes it.
    pub fn new(mib: u64, seed: u64) -> io::Result<Self> {
        let mut file = File::from(memfd_create("ballast", MFdFlags::MFD_CLOEXEC)?);
        let len = mib << 20;
        let (mut all, mut writer) = (Words::new(seed), BufWriter::new(&mut file));
        for _ in 0..len / size_of::<u64>() as u64 {
            writer.write_all(&all.word().to_ne_bytes())?;
        }
        writer.flush()?;
        drop(writer);
        Ok(Self { file, seed, len })
    }

    /// Whether it is as it was made.
    pub fn is_intact(&self) -> io::Result<bool> {
        let mut all = Words::new(self.seed);
        let mut chunk = vec![0; CHUNK];
        for at in (0..self.len).step_by(CHUNK) {
            let chunk = &mut chunk[..CHUNK.min((self.len - at) as usize)];
            self.file.read_exact_at(chunk, at)?;
            let is_right = |word: &[u8]| word == all.word().to_ne_bytes();
            if !chunk.chunks(size_of::<u64>()).all(is_right) {
                return Ok(false);
            }
        }
        Ok(self.file.metadata()?.len() == self.len)
    }
}
