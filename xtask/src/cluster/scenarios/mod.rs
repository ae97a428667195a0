//! What must hold, seen from outside. One file per theme, each with its list.

use super::matrix::Scenario;

mod attacks;
mod backlog;
mod base;
mod base_forward;
mod base_retire;
mod boot;
mod bounds;
mod breaking;
mod commands;
mod config;
mod confine;
mod crash;
mod crash_policy;
mod datagrams;
mod dispatch;
mod dispatch_rules;
mod drain;
mod framing;
mod groups;
mod hostile;
mod limits;
mod listeners;
mod manager;
mod messages;
mod operation;
mod packets;
mod placement;
mod pressure;
mod processes;
mod programs;
mod proxy;
mod recycle;
mod relist;
mod reload;
mod sending;
mod sessions;
mod shape;
mod shortage;
mod socat;
mod stop;
mod stuck;
mod tasks;
mod tcp;
mod tls;
mod vortex;

pub(super) fn all() -> impl Iterator<Item = &'static Scenario> {
    let themes = [
        shape::ALL,
        packets::ALL,
        datagrams::ALL,
        framing::ALL,
        listeners::ALL,
        tcp::ALL,
        proxy::ALL,
        placement::ALL,
        commands::ALL,
        dispatch::ALL,
        dispatch_rules::ALL,
        crash::ALL,
        crash_policy::ALL,
        breaking::ALL,
        reload::ALL,
        relist::ALL,
        drain::ALL,
        recycle::ALL,
        backlog::ALL,
        manager::ALL,
        stop::ALL,
        stuck::ALL,
        tasks::ALL,
        tls::ALL,
        socat::ALL,
        messages::ALL,
        groups::ALL,
        sessions::ALL,
        sending::ALL,
        processes::ALL,
        boot::ALL,
        config::ALL,
        confine::ALL,
        operation::ALL,
        pressure::ALL,
        bounds::ALL,
        shortage::ALL,
        hostile::ALL,
        limits::ALL,
        attacks::ALL,
        base::ALL,
        base_retire::ALL,
        base_forward::ALL,
        programs::ALL,
        vortex::ALL,
    ];
    themes.into_iter().flatten()
}
