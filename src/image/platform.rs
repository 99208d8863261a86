//! What an image is for: operating system, processor and its variant.

use crate::error::{Error, Result};
use crate::image::spec::{ConfigPlatform, RawPlatform, bounded, parse};
use std::fmt;
use std::str::FromStr;

/// The longest of a platform's fields: every candidate has its own copy. Go knows none longer than `loongarch64`.
const MAX_PLATFORM_FIELD: usize = 64;

/// Operating system and processor an image is for, in Go's words: `linux/amd64`, `linux/arm/v7`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    os: String,
    pub(super) architecture: String,
    pub(super) variant: Option<String>,
}

impl Platform {
    /// The platform this program runs on.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "x86" => "386",
            "aarch64" => "arm64",
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            "powerpc64" => "ppc64",
            "loongarch64" => "loong64",
            other => other,
        };
        Self { os: std::env::consts::OS.into(), architecture: architecture.into(), variant: None }
    }

    /// The same operating system and architecture, and the same variant where this one names any.
    pub(super) fn accepts(&self, other: &Self) -> bool {
        let same = self.os == other.os && self.architecture == other.architecture;
        same && (self.variant.is_none() || self.variant() == other.variant())
    }

    /// The variant, or the one that the architecture has when it names none (as containerd's `platforms` has it).
    fn variant(&self) -> Option<&str> {
        self.variant.as_deref().or(self.usual_variant())
    }

    fn usual_variant(&self) -> Option<&str> {
        match self.architecture.as_str() {
            "arm64" => Some("v8"),
            "arm" => Some("v7"),
            "amd64" => Some("v1"),
            _ => None,
        }
    }

    /// Whether it is for every processor of its architecture, or for the usual ones.
    pub(super) fn is_usual(&self) -> bool {
        self.variant() == self.usual_variant()
    }

    /// What BuildKit gives to manifests that are no image.
    pub(crate) fn is_unknown(&self) -> bool {
        self.os == "unknown" && self.architecture == "unknown"
    }

    pub(crate) fn from_raw(raw: &RawPlatform) -> Result<Option<Self>> {
        check_fields([raw.os.as_ref(), raw.architecture.as_ref(), raw.variant.as_ref()])?;
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        Ok(Self::known(&text(&raw.os), &text(&raw.architecture), raw.variant.as_deref()))
    }

    /// The platform in a config that nobody has checked yet.
    pub(crate) fn read(config: &[u8]) -> Result<Option<Self>> {
        let config: ConfigPlatform = parse("the config", config)?;
        check_fields([config.os.as_ref(), config.architecture.as_ref(), config.variant.as_ref()])?;
        Ok(Self::from_config(&config))
    }

    pub(crate) fn from_config(config: &ConfigPlatform) -> Option<Self> {
        Self::known(config.os.as_deref()?, config.architecture.as_deref()?, config.variant.as_deref())
    }

    fn known(os: &str, architecture: &str, variant: Option<&str>) -> Option<Self> {
        let variant = variant.filter(|v| !v.is_empty()).map(str::to_owned);
        let known = !os.is_empty() && !architecture.is_empty();
        known.then(|| Self { os: os.into(), architecture: architecture.into(), variant })
    }

    /// As an index entry's `platform`.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        let mut json = serde_json::json!({ "os": self.os, "architecture": self.architecture });
        if let Some(variant) = &self.variant {
            json["variant"] = variant.as_str().into();
        }
        json
    }
}

/// Operating system, architecture and variant against their limit.
fn check_fields(values: [Option<&String>; 3]) -> Result<()> {
    let mut fields = ["os", "architecture", "variant"].into_iter().zip(values);
    fields.try_for_each(|(field, value)| bounded(field, value.map_or("", String::as_str), MAX_PLATFORM_FIELD))
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |v| write!(f, "/{v}"))
    }
}

impl FromStr for Platform {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts: Vec<_> = text.split('/').collect();
        let platform = match parts[..] {
            [os, architecture] => Self::known(os, architecture, None),
            [os, architecture, variant] if !variant.is_empty() => Self::known(os, architecture, Some(variant)),
            _ => None,
        };
        platform.ok_or_else(|| Error::invalid("not a platform").subject(text).expected("os/architecture[/variant]"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn arm64_is_v8() {
        let wanted: Platform = "linux/arm64/v8".parse().unwrap();
        assert!(wanted.accepts(&"linux/arm64".parse().unwrap()));
        assert!(!wanted.accepts(&"linux/arm64/v9".parse().unwrap()));
        for bad in ["", "linux", "linux/", "a/b/c/d", "linux/arm/"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }

    #[test]
    fn platform_fields_are_bounded() {
        for field in ["os", "architecture", "variant"] {
            let config = |len| {
                let mut json = serde_json::json!({ "os": "linux", "architecture": "arm", "variant": "v7" });
                json[field] = "x".repeat(len).into();
                json.to_string()
            };
            assert!(Platform::read(config(MAX_PLATFORM_FIELD).as_bytes()).unwrap().is_some());
            let e = Platform::read(config(MAX_PLATFORM_FIELD + 1).as_bytes()).unwrap_err();
            assert!(e.kind() == ErrorKind::LimitExceeded && e.message().contains(field), "{e}");
        }
    }
}
