//! What the user names: images and layers of the store, paths in them; and names shown to the user.

use crate::errors::{Failure, Hint};
use layerstore::{Advice, DigestPrefix, Error, ErrorKind, ImageInfo, LayerInfo, Store, is_unprintable};
use std::ffi::OsStr;
use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;

/// An image or a layer.
pub(crate) enum Named {
    Image(ImageInfo),
    Layer(LayerInfo),
}

/// Finds what `name` means: an image's exact name, or the first digits of a layer's diff_id or of an image's config or
/// manifest digest. A full digest is never a name, and digits that are certain to be a digest go before names: an image's
/// author may have chosen its name. Several names of one image are no ambiguity.
pub(crate) fn find(store: &Store, name: &str) -> Result<Named, Failure> {
    let found = fitting(store, name)?;
    let mut images: Vec<ImageInfo> = match found.is_full || found.by_digest() && found.is_certain {
        true => found.images,
        false => found.named.into_iter().chain(found.images).collect(),
    };
    // The first name stays.
    images.sort_by_key(|image| image.config);
    images.dedup_by_key(|image| image.config);
    only(name, &images, &found.layers)
}

/// As [`find`], where it matters which name of an image is meant: what may be a name and a digest is refused.
pub(crate) fn find_name(store: &Store, name: &str) -> Result<Named, Failure> {
    let mut found = fitting(store, name)?;
    if let Some(named) = &found.named {
        // An image without a name has its digest instead. One that has the digest of another, as could be once, can go
        // if nothing else has that digest.
        let own = found.images.iter().any(|image| image.name == named.name);
        if own || !found.by_digest() {
            return Ok(Named::Image(named.clone()));
        }
        if !found.is_full {
            found.images.insert(0, named.clone());
        }
    }
    only(name, &found.images, &found.layers)
}

/// As [`find`], for what needs an image.
pub(crate) fn image(store: &Store, name: &str) -> Result<ImageInfo, Failure> {
    let list = "`layerstore images` lists the images there are";
    match find(store, name).hint_for(Advice::List, list)? {
        // Looked up once more, since that checks it.
        Named::Image(image) => Ok(store.image_named(&image.name)?),
        Named::Layer(_) => Err(Error::not_found("no such image, but a layer").subject(name)).hint(list),
    }
}

/// All that a text may mean.
struct Fitting {
    /// The image that has it as its name.
    named: Option<ImageInfo>,
    /// Those whose digest begins like it.
    images: Vec<ImageInfo>,
    layers: Vec<LayerInfo>,
    /// It is a digest, if any begins like it.
    is_certain: bool,
    /// It is a digest in any case.
    is_full: bool,
}

impl Fitting {
    fn by_digest(&self) -> bool {
        !self.images.is_empty() || !self.layers.is_empty()
    }
}

fn fitting(store: &Store, name: &str) -> Result<Fitting, Failure> {
    let all = store.images()?;
    let named = || all.iter().find(|image| image.name == name).cloned();
    let Some(prefix) = DigestPrefix::parse(name) else {
        return Ok(Fitting { named: named(), images: vec![], layers: vec![], is_certain: false, is_full: false });
    };
    let images = store.images_by_digest(&prefix)?;
    let layers: Vec<_> = store.layers()?.into_iter().filter(|layer| prefix.fits_sha256(&layer.diff_id)).collect();
    let (is_certain, is_full) = (prefix.is_certain(), prefix.full().is_some());
    Ok(Fitting { named: named(), images, layers, is_certain, is_full })
}

fn only(name: &str, images: &[ImageInfo], layers: &[LayerInfo]) -> Result<Named, Failure> {
    match (images, layers) {
        ([], []) => Err(Error::not_found("no such image or layer").subject(name).advise(Advice::List).into()),
        ([image], []) => Ok(Named::Image(image.clone())),
        ([], [layer]) => Ok(Named::Layer(layer.clone())),
        _ => {
            let images = images.iter().map(|image| format!("image {}", image.name));
            let layers = layers.iter().map(|layer| format!("layer {}", layer.diff_id));
            let list: Vec<_> = images.chain(layers).collect();
            Err(Error::invalid("the name fits several").subject(name).actual(list.join(", "))).hint(
                match name.rsplit(':').next().is_some_and(|digits| digits.len() >= 64) {
                    true => "use an image's name",
                    false => "use an image's name, or more digits of the digest",
                },
            )
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
