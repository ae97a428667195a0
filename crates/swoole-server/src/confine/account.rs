//! Who workers are: `user` and `group`.

use rustix::process::{Gid, Uid, getegid, geteuid, getgid, getuid};
use rustix::thread::CapabilitySet;
use serde::{Deserialize, Serialize};
use swoole_sys::user;

use super::{drop_capabilities, require};
use crate::config::{Config, ConfigError};
use crate::error::{Error, Result};

/// Numbers only: they travel to a manager that is executed anew, which is to have the same.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Account {
    /// `None` if only the group is another one.
    uid: Option<u32>,
    gid: u32,
    groups: Vec<u32>,
}

/// The account that the configuration names; `None` if there is nothing to change.
pub(super) fn resolve(config: &Config) -> Result<Option<Account>> {
    let group = config.group.as_deref().map(find_group).transpose()?;
    let Some(name) = config.user.as_deref() else {
        let Some(gid) = group else { return Ok(None) };
        require("group", config.group.as_deref().unwrap_or_default(), ("CAP_SETGID", CapabilitySet::SETGID))?;
        return Ok(Some(Account { uid: None, gid: gid.as_raw(), groups: vec![gid.as_raw()] }));
    };
    let (uid, gid, groups) = find_user(name, group)?;
    let is_already = [getuid(), geteuid()] == [uid, uid] && [getgid(), getegid()] == [gid, gid];
    if is_already && !uid.is_root() {
        return Ok(None);
    }
    let rights = CapabilitySet::SETUID | CapabilitySet::SETGID;
    require("user", name, ("CAP_SETUID and CAP_SETGID", rights))?;
    let groups = groups.into_iter().map(Gid::as_raw).collect();
    Ok(Some(Account { uid: Some(uid.as_raw()), gid: gid.as_raw(), groups }))
}

fn find_user(name: &str, group: Option<Gid>) -> Result<(Uid, Gid, Vec<Gid>)> {
    let failed = |error| Error::setup(format!("look up user = {name}"), std::io::Error::from(error));
    if let Some(found) = user::find_user(name).map_err(failed)? {
        let gid = group.unwrap_or(found.gid);
        return Ok((found.uid, gid, user::find_groups(name, gid).map_err(failed)?));
    }
    let Some(uid) = number(name) else {
        return Err(ConfigError::value("user", name, "there is no such user").into());
    };
    let Some(gid) = group else {
        let expected = "there is no such account, so that it needs a group";
        return Err(ConfigError::value("user", name, expected).into());
    };
    Ok((Uid::from_raw(uid), gid, vec![gid]))
}

fn find_group(name: &str) -> Result<Gid> {
    let found = user::find_group(name)
        .map_err(|error| Error::setup(format!("look up group = {name}"), std::io::Error::from(error)))?;
    let gid = found.or_else(|| number(name).map(Gid::from_raw));
    gid.ok_or_else(|| ConfigError::value("group", name, "there is no such group").into())
}

/// The number that a name is; the highest means "none" to the kernel.
fn number(name: &str) -> Option<u32> {
    name.parse().ok().filter(|number| *number != u32::MAX)
}

impl Account {
    pub(super) fn is_root(&self) -> bool {
        self.uid.is_none_or(|uid| uid == 0)
    }

    /// Whose files are to be that workers read, as far as that is somebody else.
    pub(crate) fn owner(&self) -> (Option<Uid>, Gid) {
        (self.uid.map(Uid::from_raw), Gid::from_raw(self.gid))
    }

    /// Becomes it, for good.
    pub(super) fn assume(&self) -> Result<()> {
        let failed = |error| Error::setup(format!("become {self:?}"), std::io::Error::from(error));
        let groups: Vec<Gid> = self.groups.iter().copied().map(Gid::from_raw).collect();
        user::set_groups(&groups).and_then(|()| user::set_gid(Gid::from_raw(self.gid))).map_err(failed)?;
        let Some(uid) = self.uid else { return Ok(()) };
        user::set_uid(Uid::from_raw(uid)).map_err(failed)?;
        if uid == 0 {
            return Ok(());
        }
        // Who was not root before, has them still.
        drop_capabilities().map_err(|error| Error::setup("give up all capabilities", error))?;
        match user::set_uid(Uid::ROOT) {
            Err(_) => Ok(()),
            Ok(()) => Err(Error::setup(format!("become {self:?}"), "this process could be root again")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(user: Option<&str>, group: Option<&str>) -> Result<Option<Account>> {
        resolve(&Config { user: user.map(Into::into), group: group.map(Into::into), ..Config::default() })
    }

    fn refused(user: Option<&str>, group: Option<&str>) -> String {
        resolved(user, group).unwrap_err().to_string()
    }

    #[test]
    fn who_is_nobody_is_named() {
        assert_eq!(resolved(None, None).unwrap(), None);
        assert_eq!(refused(Some("no-such-user"), None), "user = no-such-user: there is no such user");
        assert_eq!(refused(None, Some("no-such")), "group = no-such: there is no such group");
        let number = "3999999999";
        assert!(refused(Some(number), None).contains("needs a group"), "{}", refused(Some(number), None));
        assert!(refused(Some("4294967295"), Some("0")).contains("no such user"));
        assert!(refused(Some("-1"), Some("0")).contains("no such user"));
    }

    #[test]
    fn names_and_numbers_are_resolved_or_the_right_is_missing() {
        let root = Account { uid: Some(0), gid: 3_999_999_999, groups: vec![3_999_999_999] };
        match resolved(Some("root"), Some("3999999999")) {
            Ok(account) => {
                let account = account.unwrap();
                assert_eq!((account.uid, account.gid), (root.uid, root.gid));
                assert!(account.groups.contains(&root.gid), "{account:?}");
            }
            Err(error) => assert!(error.to_string().contains("CAP_SETUID"), "{error}"),
        }
    }
}
