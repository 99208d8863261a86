//! The images a store has: by name, with their configuration and manifest.

use super::spec::{Config, parse};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::store::{ImageInfo, Store};

impl Store {
    /// All images, by name.
    ///
    /// # Errors
    /// `Corrupt` or `Io` from the database.
    pub fn images(&self) -> Result<Vec<ImageInfo>> {
        self.with_index(|index| index.images())
    }

    /// The image of this name, or with this digest as its manifest or configuration (`sha256:<hex>`, or the first
    /// digits of it, six at least, if only one image fits).
    ///
    /// # Errors
    /// `NotFound`; `InvalidInput` if several images fit; `Corrupt` if the database gives it other layers than its
    /// configuration.
    pub fn image(&self, name: &str) -> Result<ImageInfo> {
        let image = match self.with_index(|index| index.image(name))? {
            Some(image) => image,
            None => self.image_by_digest(name)?,
        };
        self.check_image(&image).map(|()| image)
    }

    /// Whether an image has the layers that its configuration says. One that cannot be read says nothing here, unless no
    /// layers are known without it.
    pub(crate) fn check_image(&self, image: &ImageInfo) -> Result<()> {
        let config = match self.image_config(image) {
            Ok(config) => config,
            Err(e) if image.layers.is_empty() => return Err(e),
            Err(_) => return Ok(()),
        };
        let parsed: Config = parse("the config", &config)?;
        let layers = parsed.rootfs.diff_ids.unwrap_or_default();
        if layers == image.layers {
            return Ok(());
        }
        let e = Error::corrupt("the database gives an image other layers than its configuration");
        let listed = |layers: &[Digest]| layers.iter().map(Digest::to_string).collect::<Vec<_>>().join(" ");
        Err(e.subject(format!("image {}", image.name)).expected(listed(&layers)).actual(listed(&image.layers)))
    }

    fn image_by_digest(&self, name: &str) -> Result<ImageInfo> {
        let hex = name.strip_prefix("sha256:").unwrap_or(name);
        let fits = |d: &Digest| hex.len() >= 6 && d.hex().starts_with(hex);
        let mut found = self.images()?;
        found.retain(|image| fits(&image.config) || fits(&image.manifest));
        // Several names of one image are no ambiguity.
        match found.split_first() {
            None => Err(Error::not_found("no such image").subject(name)),
            Some((first, rest)) if rest.iter().all(|i| i.config == first.config) => Ok(first.clone()),
            Some(_) => {
                let names: Vec<_> = found.iter().map(|i| i.name.as_str()).collect();
                Err(Error::invalid("several images fit").subject(name).actual(names.join(", ")))
            }
        }
    }

    /// The image's configuration, the JSON it was imported with.
    ///
    /// # Errors
    /// `Corrupt` if it is missing or does not match its digest; `NotFound` if the image was removed since, and gc has
    /// taken it.
    pub fn image_config(&self, image: &ImageInfo) -> Result<Vec<u8>> {
        self.unless_gone(image, self.read_blob(&image.config))
    }

    /// The image's manifest, the JSON it was imported with; made at import for sources that have none.
    ///
    /// # Errors
    /// As [`image_config`](Self::image_config).
    pub fn image_manifest(&self, image: &ImageInfo) -> Result<Vec<u8>> {
        self.unless_gone(image, self.read_blob(&image.manifest))
    }

    /// What reading a blob of an image gave; damage is no damage if no image has the blob any more.
    fn unless_gone(&self, image: &ImageInfo, read: Result<Vec<u8>>) -> Result<Vec<u8>> {
        let Err(error) = read else { return read };
        let same = |other: &ImageInfo| (other.config, other.manifest) == (image.config, image.manifest);
        if error.kind() == ErrorKind::Corrupt && !self.images()?.iter().any(same) {
            let gone = Error::not_found("the image was removed, and gc has taken what is read of it");
            return Err(gone.subject(format!("image {}", image.name)).source(error));
        }
        Err(error)
    }

    fn read_blob(&self, digest: &Digest) -> Result<Vec<u8>> {
        let path = self.blob_path(digest);
        let bytes = std::fs::read(&path).map_err(|e| {
            Error::new(ErrorKind::Corrupt, format!("cannot read a blob: {e}")).subject(path.display()).source(e)
        })?;
        let actual = Digest::of(&bytes);
        if actual == *digest {
            Ok(bytes)
        } else {
            let e = Error::corrupt("blob does not match its digest").subject(path.display());
            Err(e.expected(digest).actual(actual))
        }
    }

    /// Takes an image's name away. Its layers stay until gc.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn remove_image(&self, name: &str) -> Result<()> {
        let remove = || self.with_index(|index| index.write(|change| change.remove_image(name)));
        match self.with_reserve(remove)? {
            true => Ok(()),
            false => Err(Error::not_found("no such image").subject(name)),
        }
    }

    /// Lets go of a layer that was imported by itself. It stays until gc, or as long as an image uses it.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn release_layer(&self, diff_id: &Digest) -> Result<()> {
        let release = || self.with_index(|index| index.write(|change| change.hold_layer(diff_id, false)));
        match self.with_reserve(release)? {
            true => Ok(()),
            false => Err(Error::not_found("no such layer").subject(diff_id)),
        }
    }
}
