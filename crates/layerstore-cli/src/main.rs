//! The `layerstore` command: argument parsing, one command, an exit code. All the work is the library's.

mod args;
mod commands;
mod context;
mod errors;
mod interrupt;
mod names;
mod output;
mod progress;
mod workdir;

use args::{Cli, Command};
use clap::Parser;
use context::Context;
use errors::{Failure, USAGE};
use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(code) = commands::run::stage(std::env::args_os().skip(1)) {
        return code;
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => return usage(&e),
    };
    let json = cli.global.json;
    interrupt::install();
    let context = Context::new(cli.global);
    match run(&context, cli.command).and_then(|code| context.out().flush().map(|()| code)) {
        Ok(code) => code,
        // Whoever read our output has enough of it; that is no failure to talk about. The code is the shell's.
        Err(_) if context.out().reader_left() => ExitCode::from(errors::READER_LEFT),
        Err(failure) => {
            // What was printed before the failure is still true.
            let _ = context.out().flush();
            failure.report(json)
        }
    }
}

fn run(context: &Context, command: Command) -> Result<ExitCode, Failure> {
    let done = match command {
        Command::Run(args) => return commands::run::run(context, &args),
        Command::Fsck(args) => return commands::fsck::run(context, &args),
        Command::Repair(args) => return commands::repair::run(context, &args),
        Command::Demo(args) => commands::demo::run(context, &args),
        Command::Init(args) => commands::init::run(context, &args),
        Command::Bench(args) => commands::bench::run(context, &args),
        Command::Import(args) => commands::import::run(context, &args),
        Command::Export(args) => commands::export::run(context, &args),
        Command::Images => commands::images::run(context),
        Command::Layers => commands::layers::run(context),
        Command::Ls(args) => commands::ls::run(context, &args),
        Command::Cat(args) => commands::cat::run(context, &args),
        Command::Inspect(args) => commands::inspect::run(context, &args),
        Command::Rm(args) => commands::rm::run(context, &args),
        Command::Gc(args) => commands::gc::run(context, &args),
        Command::Recompress(args) => commands::recompress::run(context, &args),
        Command::Why(args) => commands::why::run(context, &args),
        Command::Usage(args) => commands::usage::run(context, &args),
        Command::Completions { shell } => commands::completions::run(context, shell),
        Command::Snapshot(args) => commands::snapshot::run(context, &args),
        Command::Mount(args) => commands::mount::run(context, &args),
        Command::Umount(args) => commands::mount::umount(context, &args),
        Command::Extract(args) => commands::extract::run(context, &args),
        Command::Diff(args) => commands::diff::run(context, &args),
        Command::Commit(args) => commands::commit::run(context, &args),
        Command::Additional(args) => commands::additional::run(context, &args),
        Command::Doctor { direct_io } => commands::doctor::run(context, direct_io),
    };
    done.map(|()| ExitCode::SUCCESS)
}

/// Help and version are no errors; what is wrong is told as JSON where that was asked for.
fn usage(error: &clap::Error) -> ExitCode {
    if error.use_stderr() && std::env::args_os().any(|arg| arg == "--json") {
        let text = error.to_string();
        // What is wrong may take several lines; after it come the usage and where to find help.
        let end = ["\n\nUsage:", "\n\nFor more information"].iter().filter_map(|end| text.find(end)).min();
        let words = text[..end.unwrap_or(text.len())].trim_start_matches("error: ").split_whitespace();
        let message = words.collect::<Vec<_>>().join(" ");
        let json = serde_json::json!({ "error": message, "kind": "usage", "exit_code": USAGE });
        eprintln!("{}", output::to_json(&json));
    } else {
        // Only fails when nobody reads.
        let _ = error.print();
    }
    if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS }
}
