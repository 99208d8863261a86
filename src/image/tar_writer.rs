//! The tar of an image archive: no owner, no time; the same input gives the same bytes. Names that do not fit into a
//! header, as those of SHA-512 digests, are in a PAX header before it.

use crate::error::{Error, Result};
use std::io::{self, Read, Write};

const BLOCK: u64 = 512;

/// The largest size eleven octal digits can say.
const OCTAL_MAX: u64 = (1 << 33) - 1;

/// Bytes of a header's name, with the NUL at its end.
const NAME: usize = 100;

/// Writes members one after the other.
pub(crate) struct TarWriter<W> {
    out: W,
}

impl<W: Write> TarWriter<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out }
    }

    pub(crate) fn directory(&mut self, name: &str) -> Result<()> {
        self.write(&header(name, b'5', 0o755, 0)?)
    }

    /// Writes a file whose `len` bytes `content` must give.
    pub(crate) fn file(&mut self, name: &str, len: u64, content: &mut dyn Read) -> Result<()> {
        self.name(name)?;
        self.write(&header(name, b'0', 0o644, len)?)?;
        let copied =
            io::copy(&mut content.take(len), &mut self.out).map_err(|e| Error::io("cannot write the archive", e))?;
        if copied != len {
            return Err(Error::new(crate::ErrorKind::Io, "a file became shorter")
                .expected(len)
                .actual(copied)
                .subject(name));
        }
        self.pad(len)
    }

    /// Writes the PAX header that a long name needs.
    fn name(&mut self, name: &str) -> Result<()> {
        if name.len() < NAME {
            return Ok(());
        }
        let record = format!(" path={name}\n");
        // The length counts its own digits too: three of them for names of up to some 990 bytes.
        let record = format!("{:03}{record}", record.len() + 3);
        if record.len() > 999 {
            return Err(Error::invalid("a name too long for a tar header").subject(name));
        }
        self.write(&header("PaxHeaders/0", b'x', 0o644, record.len() as u64)?)?;
        self.write(record.as_bytes())?;
        self.pad(record.len() as u64)
    }

    fn pad(&mut self, len: u64) -> Result<()> {
        self.write(&[0; BLOCK as usize][..((BLOCK - len % BLOCK) % BLOCK) as usize])
    }

    pub(crate) fn finish(mut self) -> Result<()> {
        self.write(&[0; 2 * BLOCK as usize])?;
        self.out.flush().map_err(|e| Error::io("cannot write the archive", e))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(|e| Error::io("cannot write the archive", e))
    }
}

fn header(name: &str, kind: u8, mode: u32, len: u64) -> Result<[u8; BLOCK as usize]> {
    let mut block = [0; BLOCK as usize];
    // The rest of a long name is in the PAX header before.
    let shown = &name.as_bytes()[..name.len().min(NAME - 1)];
    block[..shown.len()].copy_from_slice(shown);
    block[100..108].copy_from_slice(format!("{mode:07o}\0").as_bytes());
    block[108..116].copy_from_slice(b"0000000\0");
    block[116..124].copy_from_slice(b"0000000\0");
    if len <= OCTAL_MAX {
        block[124..136].copy_from_slice(format!("{len:011o}\0").as_bytes());
    } else {
        block[124] = 0x80;
        block[128..136].copy_from_slice(&len.to_be_bytes());
    }
    block[136..148].copy_from_slice(b"00000000000\0");
    block[156] = kind;
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    Ok(block)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::archive::{Member, scan};
    use crate::limits::Limits;
    use std::io::Seek;

    #[test]
    fn the_scanner_finds_what_is_written() {
        let mut file = tempfile::tempfile().unwrap();
        let mut tar = TarWriter::new(&mut file);
        tar.directory("d/").unwrap();
        tar.file("d/a", 3, &mut &b"abc"[..]).unwrap();
        tar.file("b", 512, &mut io::repeat(7)).unwrap();
        assert!(tar.file("short", 5, &mut &b"abc"[..]).is_err());
        file.rewind().unwrap();
        file.set_len(5 * 512).unwrap();
        let table = scan(&file, &Limits::default()).unwrap();
        assert_eq!(table["d/a"], Member::File { offset: 1024, len: 3 });
        assert_eq!(table["b"], Member::File { offset: 2048, len: 512 });
    }

    #[test]
    fn long_names_are_in_a_pax_header() {
        let mut file = tempfile::tempfile().unwrap();
        let mut tar = TarWriter::new(&mut file);
        let names = [99, 100, 141, 980].map(|len| "x".repeat(len));
        names.iter().for_each(|name| tar.file(name, 3, &mut &b"abc"[..]).unwrap());
        assert!(tar.file(&"x".repeat(1000), 3, &mut &b"abc"[..]).is_err());
        tar.finish().unwrap();
        let table = scan(&file, &Limits::default()).unwrap();
        assert_eq!(table.len(), names.len());
        assert!(names.iter().all(|name| matches!(table[name], Member::File { len: 3, .. })));
    }

    #[test]
    fn sizes_beyond_octal_are_written_in_base_256() {
        let block = header("x", b'0', 0o644, OCTAL_MAX + 1).unwrap();
        assert_eq!(block[124..136], [0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0]);
    }
}
