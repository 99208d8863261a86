//! Blobs whole, split, cut and damaged.

use super::*;
use crate::codec::writer::BlobWriter;
use std::io::Write;

fn tar() -> Vec<u8> {
    (0..3000u32).map(|i| ((i * i) >> 5) as u8 & 0x1f).collect()
}

fn pack(tar: &[u8], compression: Compression) -> Vec<u8> {
    let mut writer = BlobWriter::new(Vec::new(), compression).unwrap();
    writer.write_all(tar).unwrap();
    writer.finish().unwrap().2
}

fn gzip(tar: &[u8]) -> Vec<u8> {
    pack(tar, Compression::Gzip)
}

fn zstd(tar: &[u8]) -> Vec<u8> {
    pack(tar, Compression::Zstd)
}

/// Reads `blob` through blocks of `block` bytes into buffers of `out` bytes.
fn unpack(blob: &[u8], block: usize, out: usize) -> Result<(Vec<u8>, BlobSummary)> {
    // The first block must let the compression be told, as `new` makes sure.
    let mut reader = BlobReader::with_block(blob, &Limits::default(), block.max(DETECT_LEN))?;
    let (mut tar, mut buffer) = (Vec::new(), vec![0; out]);
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok((tar, reader.finish()?)),
            Ok(n) => tar.extend_from_slice(&buffer[..n]),
            Err(e) => {
                assert!(reader.read(&mut buffer).is_err(), "a failed reader must stay failed");
                return Err(Error::from_io("read", e));
            }
        }
    }
}

fn refused(blob: &[u8]) -> Error {
    unpack(blob, 4096, 4096).expect_err("must be refused")
}

/// Every blob the readers must take, with what is in it.
fn good_blobs() -> Vec<(&'static str, Vec<u8>, Vec<u8>)> {
    let (tar, empty) = (tar(), Vec::new());
    let skippable = b"\x5a\x2a\x4d\x18\x03\0\0\0abc".to_vec();
    let mut named = vec![0x1f, 0x8b, 8, FLAGS_ALL, 1, 2, 3, 4, 0, 3, 2, 0, b'x', b'y'];
    named.extend_from_slice(b"name\0comment\0");
    let mut crc = flate2::Crc::new();
    crc.update(&named);
    named.extend_from_slice(&(crc.sum() as u16).to_le_bytes());
    named.extend_from_slice(&gzip(&tar)[10..]);
    vec![
        ("nothing", empty.clone(), empty.clone()),
        ("plain", tar.clone(), tar.clone()),
        ("gzip", gzip(&tar), tar.clone()),
        ("gzip of nothing", gzip(b""), empty.clone()),
        ("gzip, all header fields", named, tar.clone()),
        ("gzip members", [gzip(&tar[..100]), gzip(b""), gzip(&tar[100..])].concat(), tar.clone()),
        ("zstd", zstd(&tar), tar.clone()),
        ("zstd frames", [zstd(&tar[..100]), zstd(b""), zstd(&tar[100..])].concat(), tar.clone()),
        ("skippable", [skippable.clone(), zstd(&tar), skippable.clone()].concat(), tar),
        ("only skippable", skippable, empty),
    ]
}

/// Header CRC, extra field, name, comment.
const FLAGS_ALL: u8 = 0b1_1110;

#[test]
fn reads_every_form_at_every_split() {
    for (name, blob, tar) in good_blobs() {
        for block in (1..40).chain([64, 100, 997, 4096, BLOCK]) {
            for out in [1, 7, 1000, 1 << 20] {
                let (back, summary) = unpack(&blob, block, out).unwrap_or_else(|e| panic!("{name} {block}: {e}"));
                assert!(back == tar, "{name}, block {block}, out {out}");
                let expected = (Digest::of(&blob), blob.len() as u64, tar.len() as u64);
                assert_eq!((summary.digest, summary.size, summary.tar_len), expected, "{name}");
            }
        }
    }
}

#[test]
fn reads_from_a_source_that_gives_one_byte_at_a_time() {
    struct Trickle<'a>(&'a [u8], bool);
    impl Read for Trickle<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            self.1 = !self.1;
            if self.1 {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let n = self.0.len().min(1);
            self.0.read(&mut out[..n])
        }
    }
    for (name, blob, tar) in good_blobs() {
        let mut reader = BlobReader::new(Trickle(&blob, false), &Limits::default()).unwrap();
        let mut back = Vec::new();
        reader.read_to_end(&mut back).unwrap();
        assert!(back == tar, "{name}");
        assert_eq!(reader.finish().unwrap().digest, Digest::of(&blob), "{name}");
    }
}

#[test]
fn every_truncation_is_an_error_but_at_a_member_boundary() {
    for (name, blob, _) in good_blobs() {
        let Ok(compression @ (Compression::Gzip | Compression::Zstd)) = Compression::detect(&blob) else { continue };
        let parts = match name {
            "gzip members" => vec![gzip(&tar()[..100]).len(), gzip(&tar()[..100]).len() + gzip(b"").len()],
            "zstd frames" => vec![zstd(&tar()[..100]).len(), zstd(&tar()[..100]).len() + zstd(b"").len()],
            "skippable" => vec![11, 11 + zstd(&tar()).len()],
            _ => vec![],
        };
        // Below four bytes nothing tells zstd from a plain blob.
        for len in if compression == Compression::Gzip { 2 } else { 4 }..blob.len() {
            let result = unpack(&blob[..len], 4096, 4096);
            assert_eq!(result.is_ok(), parts.contains(&len), "{name} cut to {len} of {}", blob.len());
            if let Err(e) = result {
                assert_eq!(e.kind(), ErrorKind::InvalidInput, "{name} cut to {len}: {e}");
            }
        }
    }
}

#[test]
fn damage_is_never_taken_for_the_original() {
    for (name, blob, tar) in [("gzip", gzip(&tar()), tar()), ("zstd", zstd(&tar()), tar())] {
        for at in 0..blob.len() {
            let mut damaged = blob.clone();
            damaged[at] ^= 0x10;
            // Magic and the ignored header bytes aside, the checksums must catch it.
            if let Ok((back, summary)) = unpack(&damaged, 4096, 4096) {
                assert!(summary.compression == Compression::None || back == tar, "{name}: byte {at}");
                assert_ne!(summary.digest, Digest::of(&blob));
            }
        }
    }
}

#[test]
fn names_the_wrong_checksum_and_length() {
    let blob = gzip(&tar());
    for (from_end, word) in [(8, "CRC-32"), (4, "length")] {
        let mut damaged = blob.clone();
        damaged[blob.len() - from_end] ^= 1;
        let e = refused(&damaged);
        assert!(e.kind() == ErrorKind::InvalidInput && e.message().contains(word), "{e}");
    }
    let (_, mut damaged, _) = good_blobs().swap_remove(4);
    damaged[15] ^= 1;
    assert!(refused(&damaged).message().contains("gzip header"));
    let mut reserved = blob;
    reserved[3] = 0x80;
    assert!(refused(&reserved).message().contains("reserved"));
}

#[test]
fn only_zeros_may_follow_the_last_member_or_frame() {
    let late = [&[0; 5000][..], b"x"].concat();
    for blob in [gzip(&tar()), zstd(&tar())] {
        let again = [&[0; 3][..], &blob].concat();
        let trailers: [&[u8]; 7] = [b"garbage", b"\x1f", b"\x1f\x8b", b"\0x", b"\0\0\0\0\0\0\0\x01", &late, &again];
        for trailer in trailers {
            let whole = [&blob[..], trailer].concat();
            for block in [10, 11, 4096, BLOCK] {
                let e = unpack(&whole, block, 4096).expect_err("must be refused");
                assert_eq!(e.kind(), ErrorKind::InvalidInput, "{trailer:x?}: {e}");
            }
        }
    }
}

#[test]
fn zeros_after_the_stream_are_padding_that_the_digest_covers() {
    for (name, blob, tar) in good_blobs() {
        let Ok(Compression::Gzip | Compression::Zstd) = Compression::detect(&blob) else { continue };
        for zeros in [1, 2, 3, 4, 5, 511, 512, 10_240, 3 << 20] {
            let padded = [&blob[..], &vec![0; zeros]].concat();
            for block in if zeros < 1000 { 1..12 } else { BLOCK..BLOCK + 1 } {
                let (back, summary) = unpack(&padded, block, 1000).unwrap_or_else(|e| panic!("{name} {zeros}: {e}"));
                assert!(back == tar, "{name} and {zeros} zeros");
                assert_eq!((summary.digest, summary.size), (Digest::of(&padded), padded.len() as u64), "{name}");
            }
        }
    }
}

#[test]
fn zeros_after_the_stream_do_not_go_on_for_ever() {
    for blob in [gzip(&tar()), zstd(&tar())] {
        let mut reader = BlobReader::new((&blob[..]).chain(io::repeat(0)), &Limits::default()).unwrap();
        let e = Error::from_io("read", io::copy(&mut reader, &mut io::sink()).unwrap_err());
        assert_eq!(e.kind(), ErrorKind::LimitExceeded, "{e}");
    }
}

#[test]
fn zeros_before_the_stream_are_no_padding() {
    for blob in [gzip(&tar()), zstd(&tar())] {
        let (back, summary) = unpack(&[&[0; 512], &blob[..]].concat(), 4096, 4096).unwrap();
        assert_eq!((summary.compression, back.len()), (Compression::None, 512 + blob.len()));
    }
}

#[test]
fn a_zstd_window_over_the_limit_is_refused_before_memory_is_spent() {
    // No single segment, no content size, window descriptor 0xa8: 2 GiB; then an empty last block.
    let window = |descriptor| [0x28, 0xb5, 0x2f, 0xfd, 0x00, descriptor, 0x01, 0x00, 0x00];
    assert_eq!(refused(&window(0xa8)).kind(), ErrorKind::LimitExceeded);
    assert_eq!(refused(&window(0x88 + 1)).kind(), ErrorKind::LimitExceeded, "128 MiB and an eighth");
    assert!(unpack(&window(0x88), 4096, 4096).is_ok(), "128 MiB is the limit itself");
    // A single segment's window is its content size: 2 GiB in four bytes.
    let single = [0x28, 0xb5, 0x2f, 0xfd, 0xa0, 0, 0, 0, 0x80, 0x01, 0, 0];
    assert_eq!(refused(&single).kind(), ErrorKind::LimitExceeded);
    // libzstd alone would take this one, as all of it is at hand: content size 256, window 2 GiB.
    let at_hand = [0x28, 0xb5, 0x2f, 0xfd, 0x40, 0xa8, 0, 0, 0x03, 0x08, 0x00, b'x'];
    assert_eq!(refused(&at_hand).kind(), ErrorKind::LimitExceeded);
}

#[test]
fn a_frame_that_needs_a_dictionary_is_unsupported() {
    let frame = [0x28, 0xb5, 0x2f, 0xfd, 0x01, 0x50, 7, 0x01, 0, 0];
    assert_eq!(refused(&frame).kind(), ErrorKind::Unsupported);
}

#[test]
fn the_uncompressed_size_is_limited() {
    let blob = gzip(&vec![0; 100_000]);
    let mut reader = BlobReader::new(&blob[..], &Limits::default().layer_size(99_999)).unwrap();
    let e = Error::from_io("read", io::copy(&mut reader, &mut io::sink()).unwrap_err());
    assert_eq!(e.kind(), ErrorKind::LimitExceeded);
}

#[test]
fn a_blob_not_read_to_its_end_has_no_summary() {
    let blob = gzip(&tar());
    let mut reader = BlobReader::new(&blob[..], &Limits::default()).unwrap();
    let mut all = vec![0; tar().len()];
    reader.read_exact(&mut all).unwrap();
    let e = reader.finish().unwrap_err();
    assert_eq!(e.kind(), ErrorKind::FailedPrecondition, "the trailer was not checked yet");
}
