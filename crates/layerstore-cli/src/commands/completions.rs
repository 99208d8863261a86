//! `layerstore completions`.

use crate::args::Cli;
use crate::context::Context;
use crate::errors::Failure;
use clap::CommandFactory;
use std::io::Write;

pub(crate) fn run(context: &Context, shell: clap_complete::Shell) -> Result<(), Failure> {
    // Into memory first: the generator panics where its writer fails.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "layerstore", &mut script);
    Ok(context.out().lock().write_all(&script)?)
}
