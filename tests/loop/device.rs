//! Reading and writing of block devices and images.

use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;

pub fn put(device: &Path, at: u64, bytes: &[u8]) {
    let mut device = fs::File::options().write(true).open(device).expect("a device");
    device.seek(SeekFrom::Start(at)).expect("a place on it");
    device.write_all(bytes).expect("it can be written");
}

pub fn get(device: &Path, at: u64) -> [u8; 4] {
    let mut device = fs::File::open(device).expect("a device");
    device.seek(SeekFrom::Start(at)).expect("a place on it");
    let mut bytes = [0; 4];
    device.read_exact(&mut bytes).expect("it can be read");
    bytes
}

pub fn end_of(device: &Path) -> u64 {
    fs::File::open(device).expect("a device").seek(SeekFrom::End(0)).expect("it has an end")
}
