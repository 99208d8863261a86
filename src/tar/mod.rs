//! stub
use crate::{Entry, Limits, Result};
pub(crate) struct Parser;
pub(crate) trait Sink {
    fn segment(&mut self, bytes: &[u8]) -> Result<()>;
    fn entry(&mut self, entry: Entry) -> Result<()>;
    fn content(&mut self, bytes: &[u8]) -> Result<()>;
}
impl Parser {
    pub(crate) fn new(_: &Limits) -> Self {
        Self
    }
    pub(crate) fn push<S: Sink>(&mut self, _: &[u8], _: &mut S) -> Result<()> {
        Ok(())
    }
    pub(crate) fn finish<S: Sink>(self, _: &mut S) -> Result<()> {
        Ok(())
    }
}
