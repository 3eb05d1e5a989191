//! Files: open ones, cached ones, mounts, and records that are kept in them.

pub(in crate::linux) mod logins;
pub(in crate::linux) mod lsof;
pub(in crate::linux) mod mountinfo;
pub(in crate::linux) mod pagecache;
