//! x
pub(crate) const HELP: &str = "";
pub(crate) fn main(_: lexopt::Parser) -> crate::Verdict {
    Ok(true)
}
