//! Any bytes as a layer blob: no panic, bounded memory, and a summary only of what was really read.
#![no_main]

use layerstore::{BlobReader, Digest, Limits};
use libfuzzer_sys::fuzz_target;
use std::io::Read;

fuzz_target!(|blob: &[u8]| {
    let Ok(mut reader) = BlobReader::new(blob, &Limits::default().layer_size(64 << 20)) else { return };
    let mut buffer = vec![0; 64 << 10];
    let mut total = 0;
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => total += n as u64,
            Err(_) => return,
        }
    }
    let summary = reader.finish().expect("read to its end");
    assert_eq!((summary.digest, summary.size, summary.tar_len), (Digest::of(blob), blob.len() as u64, total));
});
