//! Who calls: the credentials the kernel kept when the connection was made.

use tonic::transport::server::UdsConnectInfo;

/// What a call does, and so who may make it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Looks: root and the configured group.
    Read,
    /// Changes something: root.
    Change,
}

/// Who may look besides root.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// The group's number; `None`: nobody.
    pub group: Option<u32>,
    /// Says whether a user is in a group according to the host: SO_PEERCRED tells only the effective group.
    pub is_member: fn(u32, u32) -> bool,
}

/// A caller that is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The connection does not say who made it.
    #[error("the caller is not known: volumed answers on its unix socket only")]
    Unknown,
    /// Not root, for a call that changes something.
    #[error("uid {uid} may not do this: run volumectl as root")]
    NotRoot {
        /// Who called.
        uid: u32,
    },
    /// Neither root nor in the group.
    #[error(
        "uid {uid} may not read the status: run volumectl as root, or as a member of the group that \
         `group` in volumed.toml names"
    )]
    NotInGroup {
        /// Who called.
        uid: u32,
    },
}

impl Policy {
    /// Decides about a call. May ask the host's user database, which may take its time: not in the runtime's threads when
    /// `is_plain` says no.
    ///
    /// # Errors
    /// When the caller may not do it; nothing was done.
    pub fn allow(self, caller: Caller, access: Access) -> Result<(), Refused> {
        let Caller { uid, gid } = caller;
        match access {
            _ if uid == 0 => Ok(()),
            Access::Change => Err(Refused::NotRoot { uid }),
            Access::Read if self.group.is_some_and(|group| group == gid || (self.is_member)(uid, group)) => {
                Ok(())
            }
            Access::Read => Err(Refused::NotInGroup { uid }),
        }
    }

    /// Returns whether the decision needs no look into the user database.
    pub fn is_plain(self, caller: Caller) -> bool {
        caller.uid == 0 || self.group.is_none_or(|group| group == caller.gid)
    }
}

/// The effective ids of the process that connected (SO_PEERCRED).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
}

impl Caller {
    /// Returns who made the connection that a request came on.
    ///
    /// # Errors
    /// When the connection has no credentials.
    pub fn of<T>(request: &tonic::Request<T>) -> Result<Self, Refused> {
        let info = request.extensions().get::<UdsConnectInfo>().ok_or(Refused::Unknown)?;
        let credentials = info.peer_cred.ok_or(Refused::Unknown)?;
        Ok(Self { uid: credentials.uid(), gid: credentials.gid() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_may_do_everything_and_others_nothing_without_a_group() {
        let policy = Policy { group: None, is_member: |_, _| true };
        for access in [Access::Read, Access::Change] {
            assert_eq!(policy.allow(Caller { uid: 0, gid: 0 }, access), Ok(()));
        }
        let other = Caller { uid: 65534, gid: 65534 };
        assert_eq!(policy.allow(other, Access::Read), Err(Refused::NotInGroup { uid: 65534 }));
        assert_eq!(policy.allow(other, Access::Change), Err(Refused::NotRoot { uid: 65534 }));
    }

    #[test]
    fn the_group_may_look_and_not_change() {
        let policy = Policy { group: Some(1234), is_member: |uid, group| (uid, group) == (7, 1234) };
        assert_eq!(policy.allow(Caller { uid: 7, gid: 7 }, Access::Read), Ok(()), "a supplementary group");
        let member = Caller { uid: 65534, gid: 1234 };
        assert_eq!(policy.allow(member, Access::Read), Ok(()));
        assert_eq!(policy.allow(member, Access::Change), Err(Refused::NotRoot { uid: 65534 }));
        assert!(policy.allow(Caller { uid: 65534, gid: 65534 }, Access::Read).is_err());
    }
}
