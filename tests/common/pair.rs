//! A testpmd with `net_vhost` and one with virtio-user, connected by a socket.

use super::{Driver, Lab, Outcome, Testpmd};

/// The side with `net_vhost0`.
#[derive(Clone, Debug)]
pub(crate) struct Backend {
    /// Which driver.
    pub(crate) driver: Driver,
    /// Queue pairs, of the port and of testpmd.
    pub(crate) queues: u16,
    /// Devargs behind `iface=` and `queues=`, beginning with a comma.
    pub(crate) devargs: &'static str,
    /// More options of EAL.
    pub(crate) eal: &'static [&'static str],
    /// More options of testpmd's own.
    pub(crate) own: &'static [&'static str],
    /// The only processor to run on, for measurements.
    pub(crate) pinned: Option<u16>,
}

/// The side with `net_virtio_user0`.
#[derive(Clone, Debug)]
pub(crate) struct Frontend {
    /// Queue pairs.
    pub(crate) queues: u16,
    /// Devargs behind `path=` and `queues=`, beginning with a comma.
    pub(crate) devargs: &'static str,
    /// More options of EAL.
    pub(crate) eal: &'static [&'static str],
    /// The only processor to run on, for measurements.
    pub(crate) pinned: Option<u16>,
}

impl Backend {
    /// A server with some queue pairs.
    pub(crate) fn server(driver: &Driver, queues: u16) -> Self {
        Self {
            driver: driver.clone(),
            queues,
            devargs: "",
            eal: &[],
            own: &[],
            pinned: None,
        }
    }

    /// A client with some queue pairs.
    pub(crate) fn client(driver: &Driver, queues: u16) -> Self {
        Self {
            devargs: ",client=1",
            ..Self::server(driver, queues)
        }
    }

    /// EAL's options for it.
    pub(crate) fn eal_args(&self, lab: &Lab) -> Vec<String> {
        let socket = lab.path_text("s");
        let vdev = format!(
            "net_vhost0,iface={socket},queues={}{}",
            self.queues, self.devargs
        );
        let mut args = self.driver.eal_args();
        args.extend(["--vdev".to_owned(), vdev]);
        args.extend(self.eal.iter().map(|&option| option.to_owned()));
        args.extend(pinned_to(self.pinned));
        args
    }

    /// Starts it and waits until it takes commands.
    pub(crate) fn start(&self, lab: &Lab) -> Outcome<Testpmd> {
        let mut testpmd = self.spawn(lab)?;
        testpmd.ready()?;
        Ok(testpmd)
    }

    /// Starts it without waiting.
    pub(crate) fn spawn(&self, lab: &Lab) -> Outcome<Testpmd> {
        let [rxq, txq] = queue_args(self.queues);
        let own = [&[rxq.as_str(), txq.as_str()], self.own].concat();
        Testpmd::spawn(lab, "backend", &self.eal_args(lab), &own)
    }
}

impl Frontend {
    /// A client of a backend that listens.
    pub(crate) fn client(queues: u16) -> Self {
        Self {
            queues,
            devargs: "",
            eal: &[],
            pinned: None,
        }
    }

    /// A server for a backend with `client=1`.
    pub(crate) fn server(queues: u16) -> Self {
        Self {
            devargs: ",server=1",
            ..Self::client(queues)
        }
    }

    /// Starts it without waiting.
    pub(crate) fn spawn(&self, lab: &Lab) -> Outcome<Testpmd> {
        self.spawn_as(lab, "frontend")
    }

    /// Starts it under another name, when there are two.
    pub(crate) fn spawn_as(&self, lab: &Lab, name: &str) -> Outcome<Testpmd> {
        let Self {
            queues,
            devargs,
            eal: more,
            pinned,
        } = self;
        let socket = lab.path_text("s");
        // virtio-user changes the number of its queues by its control queue only.
        let control = if *queues > 1 { ",cq=1" } else { "" };
        let vdev = format!("net_virtio_user0,path={socket},queues={queues}{control}{devargs}");
        let own = queue_args(*queues);
        let mut eal = vec!["--vdev".to_owned(), vdev];
        eal.extend(more.iter().map(|&option| option.to_owned()));
        eal.extend(pinned_to(*pinned));
        Testpmd::spawn(lab, name, &eal, &[&own[0], &own[1]])
    }

    /// Starts it and waits until it takes commands.
    pub(crate) fn start(&self, lab: &Lab) -> Outcome<Testpmd> {
        let mut testpmd = self.spawn(lab)?;
        testpmd.ready()?;
        Ok(testpmd)
    }
}

/// Starts both in the order that the socket's direction wants, and waits for the link.
pub(crate) fn pair(
    lab: &Lab,
    backend: &Backend,
    frontend: &Frontend,
) -> Outcome<(Testpmd, Testpmd)> {
    let socket = lab.path("s");
    let (mut back, front) = if frontend.devargs.contains("server=1") {
        let mut front = frontend.spawn(lab)?;
        lab.wait_for_file(&socket)?;
        let back = backend.start(lab)?;
        front.ready()?;
        (back, front)
    } else {
        let back = backend.start(lab)?;
        lab.wait_for_file(&socket)?;
        (back, frontend.start(lab)?)
    };
    back.wait_for_link(0, true)?;
    Ok((back, front))
}

fn queue_args(queues: u16) -> [String; 2] {
    [format!("--rxq={queues}"), format!("--txq={queues}")]
}

/// Both threads of a testpmd on one processor; the main one only waits for commands.
fn pinned_to(processor: Option<u16>) -> Vec<String> {
    let lcores = processor.map(|cpu| format!("0@{cpu},1@{cpu}"));
    lcores.map_or_else(Vec::new, |lcores| vec!["--lcores".to_owned(), lcores])
}
