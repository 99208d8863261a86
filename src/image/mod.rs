//! Images: OCI layouts and `docker save` archives, into the store and out of it.
//!
//! Reading: [`source::detect`] says what a path holds, [`source::ImageSource::select`] picks one image and gives an
//! [`plan::ImagePlan`], whose layers [`source::ImageSource::open_layer`] opens. Manifest and config are verified against
//! their digests when the plan is made; layer bytes are not, as only who reads them sees them all.
//! Writing: [`layout::LayoutWriter`], with [`manifest::manifest_for`] where layers changed.
//! Only [`import`], [`export`], [`append`], [`catalog`] and [`additional`] know the store.

pub(crate) mod additional;
pub(crate) mod append;
pub(crate) mod archive;
mod catalog;
pub(crate) mod docker;
pub(crate) mod export;
#[cfg(test)]
mod fixture;
pub(crate) mod import;
pub(crate) mod layout;
mod listing;
pub(crate) mod manifest;
pub(crate) mod members;
pub(crate) mod names;
pub(crate) mod oci;
#[cfg(test)]
mod page_cache_tests;
pub(crate) mod plan;
pub(crate) mod platform;
pub(crate) mod source;
pub(crate) mod spec;
pub(crate) mod tar_writer;
