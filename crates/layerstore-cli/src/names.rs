//! What the user names: images and layers of the store, paths in them; and names shown to the user.

use crate::errors::{Failure, Hint};
use layerstore::{Digest, Error, ErrorKind, ImageInfo, LayerInfo, Store, is_unprintable};
use std::ffi::OsStr;
use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;

/// Fewer digits of a digest are taken for a typing error.
const DIGITS: usize = 4;

/// An image or a layer.
pub(crate) enum Named {
    Image(ImageInfo),
    Layer(LayerInfo),
}

/// Finds what `name` means: an image's exact name first, then the first digits of a layer's diff_id or of an image's
/// config or manifest digest. Several names of one image are no ambiguity.
pub(crate) fn find(store: &Store, name: &str) -> Result<Named, Failure> {
    let (mut images, layers) = fitting(store, name)?;
    // The first name stays.
    images.sort_by_key(|image| image.config);
    images.dedup_by_key(|image| image.config);
    only(name, &images, &layers)
}

/// As [`find`], where it matters which name of an image is meant.
pub(crate) fn find_name(store: &Store, name: &str) -> Result<Named, Failure> {
    let (images, layers) = fitting(store, name)?;
    only(name, &images, &layers)
}

/// As [`find`], for what needs an image.
pub(crate) fn image(store: &Store, name: &str) -> Result<ImageInfo, Failure> {
    let list = "`layerstore images` lists the images there are";
    match find(store, name).hint_on(ErrorKind::NotFound, list)? {
        // Looked up once more, since that checks it.
        Named::Image(image) => Ok(store.image(&image.name)?),
        Named::Layer(_) => Err(Error::not_found("no such image, but a layer").subject(name)).hint(list),
    }
}

/// All that `name` may mean.
fn fitting(store: &Store, name: &str) -> Result<(Vec<ImageInfo>, Vec<LayerInfo>), Failure> {
    let images = store.images()?;
    if let Some(image) = images.iter().find(|image| image.name == name) {
        return Ok((vec![image.clone()], Vec::new()));
    }
    let hex = name.strip_prefix("sha256:").unwrap_or(name);
    let digits = hex.len() >= DIGITS && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let fits = |digest: &Digest| digits && digest.hex().starts_with(hex);
    let layers = store.layers()?.into_iter().filter(|layer| fits(&layer.diff_id)).collect();
    Ok((images.into_iter().filter(|i| fits(&i.config) || fits(&i.manifest)).collect(), layers))
}

fn only(name: &str, images: &[ImageInfo], layers: &[LayerInfo]) -> Result<Named, Failure> {
    match (images, layers) {
        ([], []) => Err(Error::not_found("no such image or layer").subject(name).into()),
        ([image], []) => Ok(Named::Image(image.clone())),
        ([], [layer]) => Ok(Named::Layer(layer.clone())),
        _ => {
            let images = images.iter().map(|image| format!("image {}", image.name));
            let layers = layers.iter().map(|layer| format!("layer {}", layer.diff_id));
            let list: Vec<_> = images.chain(layers).collect();
            Err(Error::invalid("the name fits several").subject(name).actual(list.join(", ")))
                .hint("use an image's name, or more digits")
        }
    }
}

/// A path in normal form, as `Entry::path` has it.
pub(crate) fn normal(path: &OsStr) -> Result<Vec<u8>, Failure> {
    let parts: Vec<&[u8]> = path.as_bytes().split(|&b| b == b'/').filter(|p| !p.is_empty() && *p != b".").collect();
    if parts.contains(&&b".."[..]) {
        let failure = Failure::new(ErrorKind::InvalidInput, "'..' in a path");
        return Err(failure.hint("paths are counted from the root of the image or layer"));
    }
    Ok(parts.join(&b'/'))
}

/// A name for a terminal: what is not printable, or would reorder what is, becomes an escape.
pub(crate) fn escape(name: &[u8]) -> String {
    let mut text = String::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                c if is_unprintable(c) => text.extend(c.escape_default()),
                c => text.push(c),
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

/// A name as part of a command that can be pasted into a shell.
pub(crate) fn shell(name: &[u8]) -> String {
    let text = escape(name);
    let plain = |c: char| c.is_alphanumeric() || "_-+=:,./@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_become_normal() {
        assert_eq!(normal(OsStr::new("/etc//./passwd/")).expect("a path"), b"etc/passwd");
        assert_eq!(normal(OsStr::new("/")).expect("a path"), b"");
        assert_eq!(normal(OsStr::new("a/../b")).expect_err("dots").kind(), ErrorKind::InvalidInput);
    }

    #[test]
    fn commands_can_be_pasted() {
        assert_eq!((shell(b"/mnt/a-1"), shell(b"it's me")), ("/mnt/a-1".into(), r"'it'\''s me'".into()));
    }

    #[test]
    fn terminals_see_no_control_characters() {
        assert_eq!(escape("caf\u{e9}".as_bytes()), "caf\u{e9}");
        assert_eq!(escape(b"a\x1b[31m\n\\\xff"), "a\\u{1b}[31m\\n\\\\\\xff");
        assert_eq!(escape("gpj\u{202e}exe".as_bytes()), "gpj\\u{202e}exe");
    }
}
