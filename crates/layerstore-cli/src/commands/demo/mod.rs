//! placeholder
pub(crate) fn run(_: &crate::context::Context, _: &crate::args::Demo) -> Result<(), crate::errors::Failure> { Ok(()) }
