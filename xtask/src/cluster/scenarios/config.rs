//! Where settings come from.

use crate::cluster::matrix::{Cx, Scenario, once};
use anyhow::{Result, ensure};
use std::fs;

pub(super) static ALL: &[Scenario] = &[once(
    "config_precedence",
    "a flag wins over the environment, which wins over the file",
    config_precedence,
)
.in_process()];

fn config_precedence(cx: &Cx) -> Result<()> {
    let file = cx.dir.join("server.toml");
    fs::write(&file, "worker_num = 1\nreactor_num = 1\n")?;
    let file = file.display();
    let bed = cx.testbed().flag("config", &file).start()?;
    ensure!(bed.ready.workers.len() == 1, "the file's worker_num is not used: {:?}", bed.ready);
    bed.stop()?;
    let bed = cx.testbed().flag("config", &file).env("SWOOLE_WORKER_NUM", "2").start()?;
    ensure!(bed.ready.workers.len() == 2, "the environment does not win over the file: {:?}", bed.ready);
    bed.stop()?;
    let bed =
        cx.testbed().flag("config", &file).env("SWOOLE_WORKER_NUM", "2").flag("worker-num", 3).start()?;
    ensure!(bed.ready.workers.len() == 3, "the flag does not win over the environment: {:?}", bed.ready);
    bed.stop()?;
    Ok(())
}
