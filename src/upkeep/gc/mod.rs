//! Garbage collection: what no image, snapshot or lease keeps is removed, and its disk space given back.
//!
//! First a [`GcPlan`] that says what would go, why, and how much that is; then [`Store::gc`] does it. Nothing that lives
//! is moved, so gc runs beside imports, reads and mounts of any process. The order of its steps, and why that is safe, is
//! in `docs/ORDERING.md`.
//!
//! 1. Rows of dead layers go, then the files no row names: records, blobs, extracted directories, metadata images.
//! 2. Chunks that no layer's record refers to leave the index (`chunks.rs`), and are forgotten once no import can count
//!    on them any more.
//! 3. Space in packs that no chunk has is punched out, and packs without chunks are removed (`space.rs`).

mod chunks;
mod files;
mod find;
mod live;
mod marks;
mod plan;
mod space;

pub(super) use find::{chain_images, disk_of};
#[cfg(any(test, feature = "internals"))]
pub(crate) use marks::mark;
pub(super) use marks::{PrefixMap, for_each_ref, for_each_row, passes};
pub use plan::{Garbage, GarbageKind, GcOptions, GcPlan, GcReport, Kept};

use crate::error::Result;
use crate::observe::Observer;
use crate::store::Store;
use crate::sys::lock::Lock;
use crate::sys::mounts::InUse;
use files::Removal;
use marks::Marker;
use space::Space;

/// Chunks that one transaction may move on a full disk: each may touch several pages, and all have to fit into the reserve.
const FEW: usize = 32;

impl Store {
    /// What [`gc`](Self::gc) would remove now. Changes nothing.
    ///
    /// # Errors
    /// `Corrupt` if a layer's record cannot be read, or rows that say what is kept are damaged: as long as it is unknown
    /// what is needed, nothing may go. A damaged pack is none: it stays as it is, and the plan names it.
    /// `Busy` if another process collects garbage for longer than the options' patience.
    pub fn gc_plan(&self, options: &GcOptions, observer: &dyn Observer) -> Result<GcPlan> {
        self.with_reserve(|| {
            let _lock = self.lock_gc(options, observer)?;
            self.plan_gc(options, observer)
        })
    }

    fn plan_gc(&self, options: &GcOptions, observer: &dyn Observer) -> Result<GcPlan> {
        let found = find::all(self, &InUse::of(self.path()), options.now)?;
        let (garbage, implied) = (found.garbage, found.implied);
        let mut plan = GcPlan { garbage, kept: found.kept, mounted: found.mounted, implied, ..GcPlan::default() };
        let mut space = Space::new(&found.packs);
        let survivors = found.layers.iter().filter(|layer| found.live.layers.contains(*layer));
        let mut marker = Marker::new(self, survivors.copied().collect(), observer)?;
        while let Some(marks) = marker.next()? {
            marks.for_each_chunk(self, observer, |chunk, alive| {
                if alive {
                    space.take(chunk.location.block, chunk.location.blocks());
                } else {
                    plan.chunks += 1;
                }
                Ok(())
            })?;
        }
        space.protect(&self.image_ranges(&found.kept_images)?);
        let spaces = self.spaces(&space, observer)?;
        plan.damaged = spaces.damaged;
        for (pack, free) in spaces.packs {
            if free.is_any() {
                plan.packs.insert(pack.base());
            }
            plan.punch += free.punch;
            plan.garbage.extend(free.garbage);
        }
        Ok(plan)
    }

    /// Removes what `plan` says, as far as it is garbage still: what somebody came to need since stays, and what became
    /// garbage since waits for the next plan. Chunks are counted in a plan, not named: those go that no layer needs once
    /// the plan's layers are gone, and disk is given back in the packs that the plan found something in. What processes
    /// left that died in their work goes too, as whenever a store is opened.
    ///
    /// # Errors
    /// `Busy` if another process collects garbage for longer than the options' patience; `Corrupt` as
    /// [`gc_plan`](Self::gc_plan); `Io`; `Cancelled`. What was removed until then stays removed, and nothing is lost.
    pub fn gc(&self, plan: &GcPlan, options: &GcOptions, observer: &dyn Observer) -> Result<GcReport> {
        let _lock = self.with_reserve(|| self.lock_gc(options, observer))?;
        let mut report = GcReport { kept: plan.kept.clone(), mounted: plan.mounted.clone(), ..GcReport::default() };
        // On a full disk there is no room for a transaction on many chunks: with what is kept in reserve some of them go,
        // and then there is.
        let mut tries = 0;
        let mut done = self.with_reserve(|| {
            tries += 1;
            self.collect(plan, if tries == 1 { usize::MAX } else { FEW }, observer, &mut report)
        });
        if tries > 1 && done.is_ok() {
            done = self.collect(plan, usize::MAX, observer, &mut report);
        }
        self.refill_reserve();
        done.map(|()| report)
    }

    /// All that gc does, but that no more than `most` chunks die.
    fn collect(&self, plan: &GcPlan, most: usize, observer: &dyn Observer, report: &mut GcReport) -> Result<()> {
        find::check_roots(self, &self.with_index(|index| index.roots())?)?;
        // What a dead session left and cannot be removed must not keep the rest.
        let swept = self.sweep();
        self.sweep_locks()?;
        self.end_leases()?;
        let removal = Removal::begin(self, plan)?;
        removal.rows()?;
        removal.stale(report)?;
        let failed = removal.files(observer, report)?;
        drop(removal);
        // Records are read whatever goes: one that is damaged stops gc here, before anything is forgotten or punched.
        report.chunks += chunks::kill(self, if plan.chunks > 0 { most } else { 0 }, observer)?;
        report.waiting = chunks::bury(self, observer)?;
        self.give_space_back(&plan.packs, observer, report)?;
        failed.map_or(swept, Err)
    }

    fn lock_gc(&self, options: &GcOptions, observer: &dyn Observer) -> Result<Lock> {
        Lock::acquire(&self.path().join("locks").join("gc"), options.patience, observer)
    }
}
