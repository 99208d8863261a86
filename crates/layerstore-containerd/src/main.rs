//! `layerstore-containerd`: containerd's snapshots and diff services on a layerstore.
//!
//! | file | what |
//! | --- | --- |
//! | `config.rs`, `check.rs` | configuration file and command line; what uses the daemon |
//! | `listen.rs` | sockets, and systemd |
//! | `bounds.rs`, `connections.rs`, `admission.rs` | what clients may take |
//! | `server.rs` | what all calls share, and how they are done |
//! | `snapshots.rs`, `remote.rs` | the snapshots service; layers that are here already |
//! | `diff/` | the diff service: blobs into the store, and back |
//! | `unpacking.rs` | which layers are being unpacked |
//! | `background.rs`, `failures.rs` | work that nobody waits for, and what it failed at |
//! | `metrics.rs`, `exposition.rs` | counters, and serving them |
//! | `convert.rs`, `proto.rs` | the protocol |
//!
//! It has no storage logic: what it needs, the library offers to everyone. It keeps no state outside the store, so it can be
//! killed and started again at any time.

mod admission;
mod background;
mod bounds;
mod check;
mod config;
mod connections;
mod convert;
mod diff;
mod exposition;
mod failures;
mod listen;
mod metrics;
mod proto;
mod remote;
mod server;
mod snapshots;
mod unpacking;

use bounds::Bounds;
use clap::Parser;
use config::{Args, Config};
use layerstore::{Error, Result};
use listen::{Socket, notify};
use server::Server;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// How long calls under way may take to notice a stop, before they are left to the next start's clean-up.
const STOP_PATIENCE: Duration = Duration::from_secs(3);

fn main() -> ExitCode {
    let args = Args::parse();
    let checks = args.check;
    let done = Config::load(args).and_then(|config| {
        if checks {
            return Ok(check::run(&config));
        }
        let filter = EnvFilter::try_new(&config.log).map_err(|e| Error::invalid(format!("log filter: {e}")))?;
        // systemd's journal adds the time itself.
        let plain = std::env::var_os("JOURNAL_STREAM").is_some();
        let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
        if plain {
            log.without_time().init()
        } else {
            log.init()
        }
        run(config).map(|()| true)
    });
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("layerstore-containerd: {}", convert::status(&e).message());
            ExitCode::FAILURE
        }
    }
}

fn run(config: Config) -> Result<()> {
    let bounds = Bounds::take();
    // Two for the work in the background, some for metrics and what tokio itself does.
    let threads = bounds.calls + 8;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().max_blocking_threads(threads).build();
    let runtime = runtime.map_err(|e| Error::io("start threads", e))?;
    let done = runtime.block_on(serve(config, bounds));
    // Work that does not end in time is as good as killed, which a store survives.
    runtime.shutdown_timeout(Duration::from_millis(500));
    done
}

async fn serve(config: Config, bounds: Bounds) -> Result<()> {
    // First of all, so that a signal during the start stops it, too.
    let (mut interrupt, mut terminate) = (catch(SignalKind::interrupt())?, catch(SignalKind::terminate())?);
    let (path, metrics) = (config.socket.clone(), config.metrics.clone());
    let server = tokio::task::spawn_blocking(move || Server::open(config, bounds)).await;
    let server = Arc::new(server.map_err(|e| Error::io("open the store", std::io::Error::other(e)))??);
    // Only now: whoever can connect is served.
    let socket = Socket::open(&path)?;
    let failed = |e| Error::io("listen", e);
    let listener = socket.listener.try_clone().map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let listener = tokio::net::UnixListener::from_std(listener).map_err(failed)?;
    let metrics = metrics.as_deref().map(exposition::Endpoint::open).transpose()?;
    let worker = server.clone();
    let worker = tokio::task::spawn_blocking(move || background::run(&worker));
    let flusher = server.clone();
    let flusher = tokio::task::spawn_blocking(move || background::flush(&flusher));
    let metrics = metrics.map(|endpoint| tokio::spawn(endpoint.run(server.clone())));

    let (stop, stopped) = tokio::sync::oneshot::channel();
    let snapshots = proto::snapshots::snapshots_server::SnapshotsServer::new(snapshots::Service(server.clone()));
    let diff = proto::diff::diff_server::DiffServer::new(diff::Service(server.clone()));
    let serving = tonic::transport::Server::builder()
        .max_concurrent_streams(bounds::STREAMS)
        .http2_max_header_list_size(bounds::HEADERS)
        .initial_stream_window_size(bounds::STREAM_WINDOW)
        .initial_connection_window_size(bounds::CONNECTION_WINDOW)
        .http2_keepalive_interval(Some(bounds::PING))
        .http2_keepalive_timeout(Some(bounds::PONG))
        .layer(admission::Admission::new(bounds.calls))
        .add_service(snapshots.max_decoding_message_size(bounds::MESSAGE))
        .add_service(diff.max_decoding_message_size(bounds::MESSAGE))
        .serve_with_incoming_shutdown(connections::accept(listener, bounds.connections), async {
            let _ = stopped.await;
        });
    let serving = tokio::spawn(serving);
    tracing::info!("ready");
    notify("READY=1");

    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    tracing::info!("stopping");
    notify("STOPPING=1");
    server.stop();
    let _ = stop.send(());
    let rest = async {
        let _ = serving.await;
        let _ = worker.await;
        let _ = flusher.await;
    };
    if tokio::time::timeout(STOP_PATIENCE, rest).await.is_err() {
        tracing::warn!("some calls did not end in time");
    }
    if let Some(task) = metrics {
        task.abort();
    }
    drop(socket);
    Ok(())
}

fn catch(kind: SignalKind) -> Result<tokio::signal::unix::Signal> {
    signal(kind).map_err(|e| Error::io("catch signals", e))
}
