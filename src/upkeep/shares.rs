//! What each image takes: alone, and together with others.
//!
//! Every chunk has the set of those whose layers refer to it: images, and all others together (held layers, snapshots,
//! leases). Sets are few, whatever the number of chunks, so a chunk remembers only its set's number; and as in gc, in
//! several passes where even that is too much memory.

use super::gc::{GcOptions, PrefixMap, disk_of, for_each_ref, for_each_row, passes};
use crate::digest::Digest;
use crate::error::Result;
use crate::format::pack::BLOCK;
use crate::observe::{Observer, check};
use crate::store::{Index, LeaseRef, Roots, Store, chain_ids, now};
use crate::sys::upper::disk_usage_readable;
use std::collections::HashMap;

/// What one image takes. Bytes of disk.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImageUsage {
    /// Its name.
    pub name: String,
    /// What nothing else needs: what comes back by removing the image and collecting garbage.
    pub exclusive: u64,
    /// What other images, held layers, snapshots or leases need too.
    pub shared: u64,
}

/// What takes the store's disk, all of it: the fields but `images[].shared` add up to what the file system reports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct UsageByImage {
    /// Every image, by name.
    pub images: Vec<ImageUsage>,
    /// What several need, counted once.
    pub shared: u64,
    /// What no image needs, but held layers, snapshots or leases do.
    pub others: u64,
    /// What garbage collection would give back now.
    pub reclaimable: u64,
    /// Database, pack tables, directories, and what is being written.
    pub overhead: u64,
}

impl UsageByImage {
    /// Disk taken in all.
    pub fn total(&self) -> u64 {
        let exclusive: u64 = self.images.iter().map(|image| image.exclusive).sum();
        exclusive + self.shared + self.others + self.reclaimable + self.overhead
    }
}

impl Store {
    /// What each image takes of the disk. Reads the chunk ids of all layers.
    ///
    /// # Errors
    /// `Corrupt` if a layer's record cannot be read; `Busy` if another process collects garbage for too long; `Io`;
    /// `Cancelled`.
    pub fn usage_by_image(&self, observer: &dyn Observer) -> Result<UsageByImage> {
        let plan = self.gc_plan(&GcOptions::default(), observer)?;
        let reclaimable = plan.bytes();
        let mut roots = self.with_index(|index| index.view(Index::roots))?;
        // What they alone keep is part of what comes back.
        roots.snapshots.retain(|row| !plan.implied.contains(&row.n));
        let total = disk_usage_readable(self.path())?;
        let mut shares = Shares::new(&roots);
        shares.files(self)?;
        shares.chunks(self, observer)?;
        let mut usage = UsageByImage { reclaimable, ..UsageByImage::default() };
        let others = roots.images.len() as u32;
        let of = |name: &String| ImageUsage { name: name.clone(), exclusive: 0, shared: 0 };
        usage.images = roots.images.iter().map(|image| of(&image.name)).collect();
        for (set, bytes) in shares.sets.members.iter().zip(&shares.bytes) {
            match &set[..] {
                [] => {}
                [only] if *only == others => usage.others += bytes,
                [only] => usage.images[*only as usize].exclusive += bytes,
                several => {
                    usage.shared += bytes;
                    let images = several.iter().filter(|&&member| member != others);
                    images.for_each(|&image| usage.images[image as usize].shared += bytes);
                }
            }
        }
        usage.overhead = total.saturating_sub(usage.total());
        Ok(usage)
    }
}

/// Sets of images, each under a number; 0 is the empty one.
struct Sets {
    members: Vec<Vec<u32>>,
    numbers: HashMap<Vec<u32>, u32>,
    unions: HashMap<(u32, u32), u32>,
}

impl Sets {
    fn new() -> Self {
        Self { members: vec![vec![]], numbers: HashMap::from([(vec![], 0)]), unions: HashMap::new() }
    }

    fn union(&mut self, a: u32, b: u32) -> u32 {
        if a == b || b == 0 {
            return a;
        }
        if let Some(known) = self.unions.get(&(a, b)) {
            return *known;
        }
        let mut both = [&self.members[a as usize][..], &self.members[b as usize]].concat();
        both.sort_unstable();
        both.dedup();
        let next = self.members.len() as u32;
        let number = *self.numbers.entry(both.clone()).or_insert(next);
        if number == next {
            self.members.push(both);
        }
        self.unions.insert((a, b), number);
        number
    }

    fn add(&mut self, set: u32, member: u32) -> u32 {
        let next = self.members.len() as u32;
        let single = *self.numbers.entry(vec![member]).or_insert(next);
        if single == next {
            self.members.push(vec![member]);
        }
        self.union(set, single)
    }
}

/// Who needs what, and how much that is.
struct Shares {
    sets: Sets,
    layers: HashMap<Digest, u32>,
    blobs: HashMap<Digest, u32>,
    chains: HashMap<Digest, u32>,
    others: u32,
    /// By set.
    bytes: Vec<u64>,
}

impl Shares {
    fn new(roots: &Roots) -> Self {
        let others = roots.images.len() as u32;
        let mut shares = Self {
            sets: Sets::new(),
            layers: HashMap::new(),
            blobs: HashMap::new(),
            chains: HashMap::new(),
            others,
            bytes: vec![],
        };
        let Self { sets, layers, blobs, chains, .. } = &mut shares;
        let mut add = |to: &mut HashMap<Digest, u32>, what: Digest, member: u32| {
            let set = to.entry(what).or_default();
            *set = sets.add(*set, member);
        };
        for (image, i) in roots.images.iter().zip(0..) {
            image.layers.iter().for_each(|layer| add(layers, *layer, i));
            chain_ids(&image.layers).for_each(|chain| add(chains, chain, i));
            [image.config, image.manifest].into_iter().for_each(|blob| add(blobs, blob, i));
        }
        roots.held.iter().for_each(|layer| add(layers, *layer, others));
        roots.snapshots.iter().filter_map(|row| row.layer).for_each(|layer| add(layers, layer, others));
        let now = now();
        for kept in roots.leases.iter().filter(|lease| !lease.is_over(now)).flat_map(|lease| &lease.refs) {
            match kept {
                LeaseRef::Layer(layer) => add(layers, *layer, others),
                LeaseRef::Blob(blob) => add(blobs, *blob, others),
                LeaseRef::Chain(chain) => add(chains, *chain, others),
            }
        }
        shares
    }

    /// Records, blobs, extracted directories and metadata images.
    fn files(&mut self, store: &Store) -> Result<()> {
        let Self { sets, layers, blobs, chains, bytes, others } = self;
        for kept in store.with_index(|index| index.kept_blobs())? {
            let all = blobs.entry(kept.digest).or_default();
            *all = sets.union(*all, layers.get(&kept.diff_id).copied().unwrap_or_default());
        }
        layers.iter().for_each(|(layer, set)| count(bytes, *set, disk_of(&store.record_path(layer))));
        blobs.iter().for_each(|(blob, set)| count(bytes, *set, disk_of(&store.blob_path(blob))));
        for (chain, set) in &*chains {
            count(bytes, *set, disk_of(&store.path().join("images").join(chain.hex() + ".erofs")));
            count(bytes, *set, disk_usage_readable(&store.path().join("trees").join(chain.hex()))?);
        }
        count(bytes, sets.add(0, *others), disk_usage_readable(&store.path().join("snapshots"))?);
        Ok(())
    }

    fn chunks(&mut self, store: &Store, observer: &dyn Observer) -> Result<()> {
        let Self { sets, layers, bytes, .. } = self;
        for (first, last) in passes(store)? {
            let mut owners = PrefixMap::<u32>::default();
            for (layer, set) in &*layers {
                check(observer)?;
                for_each_ref(store, layer, observer, |id| {
                    if (first..=last).contains(&id.prefix()) {
                        let owner = owners.entry(id.prefix()).or_default();
                        *owner = sets.union(*owner, *set);
                    }
                    Ok(())
                })?;
            }
            for_each_row(store, observer, |row| {
                if let Some(set) = owners.get(&row.id.prefix()) {
                    count(bytes, *set, row.location.blocks() * BLOCK);
                }
                Ok(())
            })?;
        }
        Ok(())
    }
}

fn count(bytes: &mut Vec<u64>, set: u32, more: u64) {
    let wanted = bytes.len().max(set as usize + 1);
    bytes.resize(wanted, 0);
    bytes[set as usize] += more;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_numbered_once() {
        let mut sets = Sets::new();
        let a = sets.add(0, 3);
        let b = sets.add(0, 1);
        let both = sets.union(a, b);
        assert_eq!(
            (sets.union(b, a), sets.add(b, 3), sets.union(both, a), sets.union(both, 0)),
            (both, both, both, both)
        );
        assert_eq!((&sets.members[both as usize][..], sets.members.len()), (&[1, 3][..], 4));
    }
}
