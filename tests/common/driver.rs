//! Which `net_vhost` a test runs.

use std::path::{Path, PathBuf};

use super::{Outcome, skip};

/// The driver under test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Driver {
    /// The one that the distribution ships inside DPDK.
    Stock,
    /// A plugin that is given to EAL with `-d`.
    Plugin(PathBuf),
}

impl Driver {
    /// The driver that `NET_VHOST_PLUGIN` names: a path, or `stock`; else the one that cargo built
    /// together with this program.
    pub(crate) fn under_test() -> Outcome<Self> {
        match std::env::var("NET_VHOST_PLUGIN") {
            Ok(name) if name == "stock" => Ok(Self::Stock),
            Ok(path) if !path.is_empty() => Self::plugin(Path::new(&path)),
            _ => Self::plugin(&Self::built_by_cargo()?),
        }
    }

    /// A plugin file; EAL wants an absolute path.
    pub(crate) fn plugin(path: &Path) -> Outcome<Self> {
        let absolute = path
            .canonicalize()
            .map_err(|error| format!("the plugin {}: {error}", path.display()))?;
        Ok(Self::Plugin(absolute))
    }

    /// `deps/librte_net_vhost.so`, which `cargo test` builds beside its test binaries. (The copy one
    /// folder up is made by `cargo build` only, and may be old.)
    fn built_by_cargo() -> Outcome<PathBuf> {
        let own = std::env::current_exe().map_err(|error| format!("current_exe: {error}"))?;
        let profile = own
            .ancestors()
            .find(|folder| folder.join("deps").is_dir())
            .ok_or("this program does not lie in cargo's target folder")?;
        Ok(profile.join("deps/librte_net_vhost.so"))
    }

    /// Is it the distribution's driver? Some of what we promise does not hold for that one.
    pub(crate) fn is_stock(&self) -> bool {
        *self == Self::Stock
    }

    /// What EAL needs on its command line to use this driver.
    pub(crate) fn eal_args(&self) -> Vec<String> {
        match self {
            Self::Stock => Vec::new(),
            Self::Plugin(path) => vec!["-d".to_owned(), path.display().to_string()],
        }
    }
}

/// The driver under test, unless that is the distribution's, of which `test` would ask too much.
pub(crate) fn ours_only(test: &str) -> Outcome<Option<Driver>> {
    let driver = Driver::under_test()?;
    if driver.is_stock() {
        skip(test, "holds for our driver only");
        return Ok(None);
    }
    Ok(Some(driver))
}
