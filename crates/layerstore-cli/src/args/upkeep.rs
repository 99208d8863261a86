//! Arguments of the commands that look after a store.

use clap::Args;

/// Remove what nothing needs, and give its disk space back
///
/// What images, held layers, snapshots and leases have stays, and so does what anything is mounted from. Imports, mounts
/// and reads may go on meanwhile, in this process or in others.
#[derive(Args)]
#[command(after_help = "EXAMPLES:\n  layerstore gc --dry-run\n  layerstore rm app:1 && layerstore gc")]
pub(crate) struct Gc {
    /// Only show what would be removed, and why
    #[arg(long)]
    pub(crate) dry_run: bool,
}
