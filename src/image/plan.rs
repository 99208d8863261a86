//! What can be chosen from an image source, and what was chosen.

use crate::codec::media::{Compression, LayerType};
use crate::digest::{Digest, OciDigest};
use crate::error::{Advice, Error, Result};
use crate::image::names::DigestPrefix;
use crate::image::platform::Platform;
use std::fmt;

/// Candidates in one source; OCI's indexes are counted by the same.
pub(crate) const MAX_CANDIDATES: usize = 10_000;

/// The longest reference: every candidate has its own copy. Registries stop at 255 bytes and a tag of 128.
pub(crate) const MAX_REFERENCE: usize = 4096;

/// Which image of a source is wanted. The default asks for the only one there is.
#[derive(Clone, Debug, Default)]
pub struct Selector {
    reference: Option<String>,
    platform: Option<Platform>,
}

impl Selector {
    /// Wants the image of this name (as in the source) or tag, or with this digest of its manifest, its configuration
    /// or the index that lists it. A full digest, with its algorithm or without, is never compared with names.
    #[must_use]
    pub fn reference(mut self, reference: impl Into<String>) -> Self {
        self.reference = Some(reference.into());
        self
    }

    /// Wants the image for this platform.
    #[must_use]
    pub fn platform(mut self, platform: Platform) -> Self {
        self.platform = Some(platform);
        self
    }
}

/// One image of a source.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Candidate {
    /// Its name in the source, where it has one.
    pub reference: Option<String>,
    /// What it is for, where the source says.
    pub platform: Option<Platform>,
    /// Digest of its manifest; `docker save` archives of the older form have none.
    pub manifest: Option<OciDigest>,
    /// Digest of its configuration, where it is known without reading the manifest.
    pub config: Option<OciDigest>,
    /// Digest of what the source gives the name to: the manifest, or the index that lists it.
    pub(crate) named: Option<OciDigest>,
    /// Other names it goes by: the bare tag beside the full reference.
    pub(crate) aliases: Vec<String>,
    /// The same for two candidates exactly if they are one image under two names.
    pub(crate) number: usize,
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reference.as_deref().unwrap_or("(no name)"))?;
        if let Some(platform) = &self.platform {
            write!(f, " {platform}")?;
        }
        match (self.manifest, self.config) {
            (Some(digest), _) | (None, Some(digest)) => write!(f, " {digest}"),
            (None, None) => Ok(()),
        }
    }
}

/// What is known of a source besides its candidates.
pub(crate) struct Listed<'a> {
    pub(crate) candidates: &'a [Candidate],
    /// What the source lists and is no candidate, each with the reason.
    pub(crate) passed_over: &'a [String],
    /// The digest of a candidate's configuration, if its manifest can be read.
    pub(crate) config: &'a dyn Fn(&Candidate) -> Option<OciDigest>,
}

/// The candidates that fit, one at least. They are of one image, if [`one_image`] says so.
pub(crate) fn fitting(listed: &Listed<'_>, selector: &Selector) -> Result<Vec<usize>> {
    let candidates = listed.candidates;
    let mut left = named(listed, selector.reference.as_deref());
    left.retain(|&i| match (&selector.platform, &candidates[i].platform) {
        (Some(wanted), Some(platform)) => wanted.accepts(platform),
        (wanted, _) => wanted.is_none(),
    });
    let narrow = |left: &mut Vec<usize>, fits: &dyn Fn(&Platform) -> bool| {
        if one_image(candidates, left) {
            return;
        }
        let better = |&i: &usize| candidates[i].platform.as_ref().is_some_and(fits);
        let better: Vec<usize> = left.iter().copied().filter(better).collect();
        if !better.is_empty() {
            *left = better;
        }
    };
    if selector.platform.is_none() {
        let host = Platform::host();
        narrow(&mut left, &|platform| host.accepts(platform));
    }
    if selector.platform.as_ref().is_none_or(|wanted| wanted.variant.is_none()) {
        let host = Platform::host();
        let architecture = selector.platform.as_ref().map_or(&host.architecture, |p| &p.architecture);
        narrow(&mut left, &|platform| platform.architecture == *architecture && platform.is_usual());
    }
    if left.is_empty() { Err(none_fits(listed, selector)) } else { Ok(left) }
}

/// The candidates that a reference names; all without one.
fn named(listed: &Listed<'_>, wanted: Option<&str>) -> Vec<usize> {
    let those = |fits: &dyn Fn(&Candidate) -> bool| -> Vec<usize> {
        (0..listed.candidates.len()).filter(|&i| fits(&listed.candidates[i])).collect()
    };
    let Some(wanted) = wanted else { return those(&|_| true) };
    let named = || those(&|c| has_name(c, wanted));
    let Some(prefix) = DigestPrefix::parse(wanted) else { return named() };
    let fits = |digest: Option<OciDigest>| digest.is_some_and(|digest| prefix.fits(&digest));
    let by_digest = || {
        let direct = those(&|c| fits(c.manifest) || fits(c.named) || fits(c.config));
        // Manifests are read only if nothing else has the digest.
        if direct.is_empty() { those(&|c| fits((listed.config)(c))) } else { direct }
    };
    if prefix.full().is_some() {
        return by_digest();
    }
    let (first, second): (&dyn Fn() -> Vec<usize>, &dyn Fn() -> Vec<usize>) =
        if prefix.is_certain() { (&by_digest, &named) } else { (&named, &by_digest) };
    let found = first();
    if found.is_empty() { second() } else { found }
}

/// Whether the candidates are names of one image.
pub(crate) fn one_image(candidates: &[Candidate], indices: &[usize]) -> bool {
    let mut numbers = indices.iter().map(|&i| candidates[i].number);
    numbers.next().is_some_and(|first| numbers.all(|n| n == first))
}

pub(crate) fn has_name(candidate: &Candidate, wanted: &str) -> bool {
    let mut names = candidate.reference.iter().chain(&candidate.aliases);
    names.any(|name| familiar(name) == familiar(wanted))
}

/// Docker writes `docker.io/library/x` and shows `x`.
fn familiar(name: &str) -> &str {
    let name = name.strip_prefix("docker.io/").unwrap_or(name);
    name.strip_prefix("library/").unwrap_or(name)
}

pub(crate) fn ambiguous(candidates: &[Candidate], left: &[usize]) -> Error {
    let of = |i: &usize| &candidates[*i];
    let same = |what: &dyn Fn(&Candidate) -> String| {
        let mut all = left.iter().map(|i| what(of(i)));
        all.next().is_none_or(|first| all.all(|other| other == first))
    };
    let (option, advice) = if !same(&|c| c.reference.clone().unwrap_or_default()) {
        let all_named = left.iter().all(|i| of(i).reference.is_some());
        (if all_named { "name" } else { "name or digest" }, Advice::ChooseByName)
    } else if !same(&|c| c.platform.as_ref().map(Platform::to_string).unwrap_or_default()) {
        ("platform", Advice::ChooseByPlatform)
    } else {
        ("digest", Advice::ChooseByDigest)
    };
    let list = listing(left.iter().map(of));
    Error::invalid(format!("several images fit; choose one by its {option}: {list}")).advise(advice)
}

fn none_fits(listed: &Listed<'_>, selector: &Selector) -> Error {
    let candidates = listed.candidates;
    let mut wanted = String::new();
    if let Some(reference) = &selector.reference {
        wanted += &format!(" named '{reference}'");
    }
    if let Some(platform) = &selector.platform {
        wanted += &format!(" for {platform}");
    }
    let mut message = format!("there is no image{wanted}");
    if !candidates.is_empty() {
        message += &format!("; there is: {}", listing(candidates.iter()));
    }
    if !listed.passed_over.is_empty() {
        message += &format!("; passed over: {}", listed.passed_over.join(", "));
    }
    let e = Error::not_found(message);
    if candidates.is_empty() { e } else { e.advise(Advice::ChooseAnother) }
}

fn listing<'a>(candidates: impl Iterator<Item = &'a Candidate>) -> String {
    let list: Vec<_> = candidates.map(|c| c.to_string().escape_debug().to_string()).collect();
    list.join(", ")
}

/// One image, verified as far as it can be without reading its layers.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ImagePlan {
    /// The name it was found under.
    pub reference: Option<String>,
    /// The manifest as it was; none in `docker save` archives of the older form.
    pub manifest: Option<RawManifest>,
    /// SHA-256 of the config, whatever digest the manifest calls it by.
    pub config_digest: Digest,
    /// The config as it was.
    pub config: Vec<u8>,
    /// The layers, lowest first.
    pub layers: Vec<PlannedLayer>,
    /// Other manifests of the same configuration and platform, whose layers are compressed in another way: any of them
    /// would have done, and this one is read faster.
    pub passed_over: Vec<OciDigest>,
    /// The digests by which a name may call the image: of manifest, configuration and index.
    pub(crate) own: Vec<OciDigest>,
}

/// A manifest, verbatim.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RawManifest {
    /// SHA-256 of `json`.
    pub digest: Digest,
    /// Its media type as the index says.
    pub media_type: String,
    /// The bytes.
    pub json: Vec<u8>,
}

/// A layer of an [`ImagePlan`]. Nothing of it was verified yet.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PlannedLayer {
    /// What the config says the uncompressed tar hashes to.
    pub diff_id: OciDigest,
    /// What the blob as stored hashes to, where the source says.
    pub blob: Option<OciDigest>,
    /// Bytes of the blob as stored.
    pub size: Option<u64>,
    /// The media type in the manifest, if there is one.
    pub media_type: Option<String>,
    /// The member of the source that holds the blob.
    pub(crate) member: String,
}

/// The config's bytes against the digest they must have.
pub(crate) fn verify(what: &str, bytes: &[u8], expected: OciDigest) -> Result<()> {
    let actual = expected.same_of(bytes);
    if actual != expected {
        let e = Error::invalid("the bytes do not match their digest").subject(what).advise(Advice::GetAgain);
        return Err(e.expected(expected).actual(actual));
    }
    Ok(())
}

impl PlannedLayer {
    /// How fast its compression is undone, by what the manifest says: the smaller the faster.
    pub(crate) fn cost(&self) -> u8 {
        match self.media_type.as_deref().and_then(LayerType::parse).map(|layer| layer.compression) {
            Some(Compression::Zstd) => 0,
            Some(Compression::None) => 1,
            _ => 2,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn candidate(number: usize, reference: &str, platform: &str) -> Candidate {
        Candidate {
            reference: (!reference.is_empty()).then(|| reference.into()),
            platform: (!platform.is_empty()).then(|| platform.parse().unwrap()),
            manifest: Some(Digest::of(&[number as u8]).into()),
            config: None,
            named: None,
            aliases: vec![],
            number,
        }
    }

    /// The place of the one image that fits. Each has a configuration of its own.
    fn choose(candidates: &[Candidate], selector: &Selector) -> Result<usize> {
        let config = |c: &Candidate| Some(config_of(c.number));
        let passed_over = ["an attestation".to_owned()];
        let left = fitting(&Listed { candidates, passed_over: &passed_over, config: &config }, selector)?;
        if one_image(candidates, &left) { Ok(left[0]) } else { Err(ambiguous(candidates, &left)) }
    }

    fn config_of(number: usize) -> OciDigest {
        Digest::of(&[100 + number as u8]).into()
    }

    fn foreign() -> &'static str {
        if Platform::host().architecture == "arm64" { "linux/amd64" } else { "linux/arm64" }
    }

    #[test]
    fn takes_the_only_image_under_whatever_name() {
        let all = [candidate(0, "a", ""), candidate(0, "b", "")];
        assert_eq!(choose(&all, &Selector::default()).unwrap(), 0);
        assert_eq!(choose(&all, &Selector::default().reference("b")).unwrap(), 1);
    }

    #[test]
    fn prefers_the_host_only_when_no_platform_is_wanted() {
        let host = Platform::host().to_string();
        let all = [candidate(0, "a", foreign()), candidate(1, "a", &host)];
        assert_eq!(choose(&all, &Selector::default()).unwrap(), 1);
        let wanted = Selector::default().platform(foreign().parse().unwrap());
        assert_eq!(choose(&all, &wanted).unwrap(), 0);
        let e = choose(&all, &Selector::default().platform("linux/s390x".parse().unwrap())).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::NotFound);
        assert!(e.message().contains(foreign()), "{e}");
    }

    #[test]
    fn names_the_option_that_would_decide() {
        let host = Platform::host().to_string();
        let e = choose(&[candidate(0, "a", &host), candidate(1, "b", &host)], &Selector::default()).unwrap_err();
        assert!(e.kind() == ErrorKind::InvalidInput && e.message().contains("by its name"), "{e}");
        assert!(e.message().contains("a linux") && e.message().contains("b linux"), "{e}");
        let same = [candidate(0, "a", "linux/arm/v6"), candidate(1, "a", "linux/arm/v7")];
        assert!(choose(&same, &Selector::default()).unwrap_err().message().contains("platform"));
        let v7 = Selector::default().platform("linux/arm/v7".parse().unwrap());
        assert_eq!(choose(&same, &v7).unwrap(), 1);
    }

    #[test]
    fn finds_an_image_by_digest_or_familiar_name() {
        let all = [candidate(0, "docker.io/library/x:1", ""), candidate(1, "docker.io/me/x:1", "")];
        assert_eq!(choose(&all, &Selector::default().reference("x:1")).unwrap(), 0);
        assert_eq!(choose(&all, &Selector::default().reference("me/x:1")).unwrap(), 1);
        let digest = Digest::of(&[1]).to_string();
        assert_eq!(choose(&all, &Selector::default().reference(digest)).unwrap(), 1);
        for config in [config_of(1).to_string(), config_of(1).hex(), config_of(1).hex()[..6].to_owned()] {
            assert_eq!(choose(&all, &Selector::default().reference(config)).unwrap(), 1);
        }
        // A tag may be digits too; so many are a digest if there is one.
        for (digits, taken) in [(6, 0), (12, 1)] {
            let text = &config_of(1).hex()[..digits];
            let all = [candidate(0, text, ""), candidate(1, "b", "")];
            assert_eq!(choose(&all, &Selector::default().reference(text)).unwrap(), taken);
        }
    }

    /// The author of an image may write what he likes; what is asked for by its digest has that digest.
    #[test]
    fn a_name_in_the_form_of_a_digest_is_not_looked_at() {
        for digest in [candidate(1, "", "").manifest.unwrap(), config_of(1)] {
            for text in [digest.to_string(), digest.hex()] {
                let all = [candidate(0, &text, ""), candidate(1, "b", "")];
                assert_eq!(choose(&all, &Selector::default().reference(text)).unwrap(), 1);
            }
        }
    }

    #[test]
    fn errors_advise_what_decides() {
        let host = Platform::host().to_string();
        let advice = |all: &[Candidate]| choose(all, &Selector::default()).unwrap_err().advice();
        let (a, b) = (candidate(0, "a", &host), candidate(1, "a", &host));
        assert_eq!(advice(&[a.clone(), b]), Some(Advice::ChooseByDigest));
        assert_eq!(advice(&[a.clone(), candidate(1, "b", &host)]), Some(Advice::ChooseByName));
        let e = choose(&[a.clone(), candidate(1, "", &host)], &Selector::default()).unwrap_err();
        assert!(e.message().contains("by its name or digest"), "{e}");
        assert_eq!(advice(&[]), None);
        let e = choose(&[], &Selector::default()).unwrap_err();
        assert_eq!(e.message(), "there is no image; passed over: an attestation");
        let e = choose(&[a], &Selector::default().reference("c")).unwrap_err();
        assert!(e.message().contains("there is: a") && e.advice() == Some(Advice::ChooseAnother), "{e}");
    }

    /// Indexes of newer distributions list a variant for newer processors beside the usual one.
    #[test]
    fn the_usual_variant_goes_before_others() {
        let of = |architecture: &str, variants: [&str; 2]| {
            let platform = |v: &str| format!("linux/{architecture}{v}");
            let all = [candidate(0, "a", &platform(variants[0])), candidate(1, "a", &platform(variants[1]))];
            choose(&all, &Selector::default().platform(platform("").parse().unwrap()))
        };
        assert_eq!(of("amd64", ["/v3", ""]).unwrap(), 1);
        assert_eq!(of("amd64", ["/v1", "/v2"]).unwrap(), 0);
        assert_eq!(of("arm", ["/v6", "/v7"]).unwrap(), 1);
        assert!(of("arm", ["/v5", "/v6"]).is_err());
    }
}
