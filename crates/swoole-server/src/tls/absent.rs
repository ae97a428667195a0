//! Without the feature `tls` there is no TLS, and the configuration refuses addresses of `tls://`.

use std::convert::Infallible;
use std::io::IoSlice;

use super::{Progress, TlsInfo};
use crate::config::Config;
use crate::error::Result;
use crate::listening::Listening;

#[derive(Default)]
pub(crate) struct Tls;

impl Tls {
    pub(crate) fn load(&self, _: &Listening) -> Result<()> {
        Ok(())
    }

    pub(crate) fn load_if_any(&self, _: &Listening) -> Result<()> {
        Ok(())
    }

    pub(crate) fn reload(&self, _: &Listening) {}

    pub(crate) fn stream(&self, _: u16) -> Result<Option<Stream>> {
        Ok(None)
    }
}

pub(crate) fn check(_: &Config) -> Result<()> {
    Ok(())
}

/// There is none.
#[derive(Debug)]
pub(crate) struct Stream(Infallible);

impl Stream {
    pub(crate) fn is_handshaking(&self) -> bool {
        match self.0 {}
    }

    pub(crate) fn info(&self) -> Option<TlsInfo> {
        match self.0 {}
    }

    pub(crate) fn receive(&mut self, _: &[u8], _: &mut Vec<u8>) -> std::result::Result<Progress, Infallible> {
        match self.0 {}
    }

    pub(crate) fn send(&mut self, _: &[IoSlice<'_>], _: &mut impl FnMut(&[IoSlice<'_>])) {
        match self.0 {}
    }

    pub(crate) fn say_goodbye(&mut self) {
        match self.0 {}
    }

    pub(crate) fn take_output(&mut self) -> Vec<u8> {
        match self.0 {}
    }
}
