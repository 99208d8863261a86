//! The images a store has: by name, with their configuration and manifest.

use super::names::DigestPrefix;
use super::spec::{Config, parse};
use crate::digest::{Digest, OciDigest};
use crate::error::{Advice, Error, ErrorKind, Result};
use crate::store::{ImageInfo, Store};

impl Store {
    /// All images, by name.
    ///
    /// # Errors
    /// `Corrupt` or `Io` from the database.
    pub fn images(&self) -> Result<Vec<ImageInfo>> {
        self.with_index(|index| index.images())
    }

    /// The image of this name, or with this digest as its manifest or configuration, in full or its first digits
    /// ([`DigestPrefix`]) if only one image fits.
    ///
    /// A full digest is never compared with names, and a short one that is certain to be one goes before them; the
    /// author of an image may have chosen the name.
    ///
    /// # Errors
    /// `NotFound`; `InvalidInput` if several images fit; `Corrupt` if the database gives it other layers than its
    /// configuration.
    pub fn image(&self, name: &str) -> Result<ImageInfo> {
        let prefix = DigestPrefix::parse(name);
        let found = prefix.as_ref().map_or(Ok(vec![]), |prefix| self.images_by_digest(prefix))?;
        let is_digest = prefix.is_some_and(|p| p.full().is_some() || p.is_certain() && !found.is_empty());
        let named = if is_digest { None } else { self.with_index(|index| index.image(name))? };
        // Several names of one image are no ambiguity.
        let mut all = named.iter().chain(&found);
        let image = match all.next() {
            None => return Err(Error::not_found("no such image").subject(name).advise(Advice::List)),
            Some(first) if all.all(|other| other.config == first.config) => first.clone(),
            Some(_) => {
                let names: Vec<_> = named.iter().chain(&found).map(|i| i.name.as_str()).collect();
                return Err(Error::invalid("several images fit").subject(name).actual(names.join(", ")));
            }
        };
        self.check_image(&image).map(|()| image)
    }

    /// The image that has exactly this name, which for one without a name is its digest.
    ///
    /// # Errors
    /// As [`image`](Self::image).
    pub fn image_named(&self, name: &str) -> Result<ImageInfo> {
        let image = self.with_index(|index| index.image(name))?;
        let image = image.ok_or_else(|| Error::not_found("no such image").subject(name).advise(Advice::List))?;
        self.check_image(&image).map(|()| image)
    }

    /// The images whose manifest or configuration has a digest that begins like this, by name.
    ///
    /// # Errors
    /// `Corrupt` or `Io` from the database.
    pub fn images_by_digest(&self, prefix: &DigestPrefix) -> Result<Vec<ImageInfo>> {
        let mut found = self.images()?;
        let wide = OciDigest::Sha512([0; 64]);
        // The database has no SHA-512, but the documents are small. One that cannot be read has no digest.
        let by_bytes = |bytes: Result<Vec<u8>>| bytes.is_ok_and(|bytes| prefix.fits(&wide.same_of(&bytes)));
        found.retain(|image| match prefix.needs_sha512() {
            true => by_bytes(self.image_config(image)) || by_bytes(self.image_manifest(image)),
            false => prefix.fits_sha256(&image.config) || prefix.fits_sha256(&image.manifest),
        });
        Ok(found)
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
        // What a SHA-512 stands for, the import told: it is not known without reading the layer.
        let same = layers.iter().zip(&image.layers).all(|(said, is)| said.may_be(is));
        if layers.len() == image.layers.len() && same {
            return Ok(());
        }
        let e = Error::corrupt("the database gives an image other layers than its configuration");
        let is: Vec<_> = image.layers.iter().map(Digest::to_string).collect();
        let said: Vec<_> = layers.iter().map(OciDigest::to_string).collect();
        Err(e.subject(format!("image {}", image.name)).expected(said.join(" ")).actual(is.join(" ")))
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
            false => Err(Error::not_found("no such image").subject(name).advise(Advice::List)),
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
            false => Err(Error::not_found("no such layer").subject(diff_id).advise(Advice::List)),
        }
    }
}

#[cfg(test)]
#[path = "catalog_tests.rs"]
mod tests;
