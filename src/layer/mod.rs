//! Layers: a tar comes in, its record and chunks stay, the same tar goes out.

mod assemble;
mod changes;
mod compare;
mod content;
mod create;
mod export;
mod holes;
mod import;
mod options;
mod read;
mod record;
mod root;
mod source;
mod stages;

pub use changes::{Changes, CreateOptions};
pub(crate) use compare::{OF_THE_HOST, SourceTree, disk_has};
pub use content::FileReader;
pub(crate) use content::{Piece, place};
pub use export::LayerExport;
pub use import::{ImportStats, LayerImport};
pub(crate) use import::{Keep, LayerDone, LayerJob, import_layers, import_stats};
pub use options::ImportOptions;
pub use read::{Entries, Layer, LayerEntry};
pub(crate) use root::Content;
pub use root::Root;
pub(crate) use source::{DiskFile, DiskPlace, Source};
pub use stages::{Stage, StageTime, StageTimes, time_stages};
