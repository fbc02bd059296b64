//! Hosts with a network, a file system and processes of their own, made of Linux namespaces.
//!
//! The shell of a host is the first process of its namespace of processes, so whatever it has started
//! ends with it; and it ends when its standard input does, so nothing is left behind by a test that is
//! killed.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

/// Domain of the hosts' names.
pub(crate) const DOMAIN: &str = "example.org";

/// After this a block of commands is given up. It takes a fraction of it on a slow machine.
const PATIENCE: Duration = Duration::from_secs(180);

/// What the programs of a host need of the machine's own `/etc`, which they do not see otherwise.
const SYSTEM_FILES: [&str; 11] = [
    "alternatives",
    "group",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "login.defs",
    "nsswitch.conf",
    "passwd",
    "protocols",
    "services",
];

/// Stand-ins for programs that need another host or the system's first process.
const STAND_INS: [(&str, &str); 2] =
    [("scp", include_str!("scp.sh")), ("systemctl", include_str!("systemctl.sh"))];

/// Why hosts cannot be made here, if so.
pub(crate) fn missing() -> Option<&'static str> {
    let works = |program: &str, arguments: &[&str]| {
        let quiet =
            Command::new(program).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
        quiet.is_ok_and(|status| status.success())
    };
    if !works("unshare", &["--net", "--mount", "--uts", "--pid", "--fork", "--mount-proc", "true"]) {
        Some("making namespaces needs root (CAP_SYS_ADMIN) and the program unshare of util-linux")
    } else if !works("ip", &["-V"]) {
        Some("the program ip of iproute2 is missing")
    } else if !works("unshare", &["--net", "nft", "list", "ruleset"]) {
        Some("the program nft of nftables is missing, or may not be used")
    } else if !works("sh", &["-c", "command -v useradd setpriv hostname"]) {
        Some("the programs useradd, setpriv or hostname are missing")
    } else {
        None
    }
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().expect("the tool is there");
    let messages = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {}: {messages}", arguments.join(" "));
}

/// Hosts on one network.
pub(crate) struct Network {
    /// A host without files that holds the bridge.
    switch: Host,
    hosts: Vec<Host>,
}

impl Network {
    /// Makes hosts of these names and addresses in `folder`. Each has the programs of `programs` in
    /// `/usr/local/bin`.
    pub(crate) fn new(folder: &Path, hosts: &[(&str, &str)], programs: &[PathBuf]) -> Self {
        let stand_ins = folder.join("stand-ins");
        fs::create_dir(&stand_ins).expect("a folder");
        for (name, text) in STAND_INS {
            let path = stand_ins.join(name);
            fs::write(&path, text).expect("a stand-in");
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("a mode");
        }
        let names: String =
            hosts.iter().map(|(name, address)| format!("{address} {name}.{DOMAIN} {name}\n")).collect();
        let names = format!("127.0.0.1 localhost\n::1 localhost\n{names}");
        let switch = Host::start(folder, "switch", &names, &[]);
        switch.ip(&["link", "add", "bridge", "type", "bridge"]);
        switch.ip(&["link", "set", "bridge", "up"]);
        let start = |(name, address): &(&str, &str)| {
            let host = Host::start(folder, name, &names, programs);
            let pid = host.shell.id().to_string();
            switch.ip(&["link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", &pid]);
            switch.ip(&["link", "set", name, "master", "bridge", "up"]);
            host.ip(&["address", "add", &format!("{address}/24"), "dev", "eth0"]);
            host.ip(&["link", "set", "eth0", "up"]);
            host
        };
        let hosts = hosts.iter().map(start).collect();
        Network { switch, hosts }
    }

    pub(crate) fn host(&mut self, name: &str) -> &mut Host {
        let host = self.hosts.iter_mut().find(|host| host.name == name);
        host.unwrap_or_else(|| panic!("the document names the host {name}, which the test does not have"))
    }

    /// Everything that the hosts and their services have said, for the message of a failure.
    pub(crate) fn told(&self) -> String {
        self.hosts.iter().map(|host| format!("--- {}\n{}\n", host.name, host.told())).collect()
    }

    /// Cuts a host's cable, or mends it.
    pub(crate) fn connect(&self, name: &str, connected: bool) {
        self.switch.ip(&["link", "set", name, if connected { "up" } else { "down" }]);
    }
}

/// One host.
pub(crate) struct Host {
    name: String,
    folder: PathBuf,
    shell: Child,
    commands: ChildStdin,
    finished: Receiver<String>,
    blocks: usize,
}

impl Host {
    fn start(folder: &Path, name: &str, names: &str, programs: &[PathBuf]) -> Self {
        let hosts = folder.join("hosts");
        let home = hosts.join(name);
        for part in ["etc/systemd/system", "var/lib", "bin", "home", "blocks"] {
            fs::create_dir_all(home.join(part)).expect("a folder");
        }
        for file in SYSTEM_FILES {
            let source = Path::new("/etc").join(file);
            if source.exists() {
                let target = home.join("etc");
                run("cp", &["-a", &source.display().to_string(), &target.display().to_string()]);
            }
        }
        fs::write(home.join("etc/hosts"), names).expect("the names of the hosts");
        for program in programs {
            let copy = home.join("bin").join(program.file_name().expect("a program has a name"));
            // A link where both are in one file system: six copies of debug builds are a gigabyte.
            fs::hard_link(program, &copy).or_else(|_| fs::copy(program, &copy).map(drop)).expect("a program");
        }
        let log = fs::OpenOptions::new().create(true).append(true).open(home.join("log")).expect("a log");
        let script = format!(
            "mount --bind {0}/etc /etc; mount --bind {0}/var/lib /var/lib; mount --bind {0}/bin /usr/local/bin\n\
             hostname {name}.{DOMAIN}; ip link set lo up; cd {0}/home; echo ready\n",
            home.display()
        );
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        let mut command = Command::new("unshare");
        command
            .args([
                "--net",
                "--mount",
                "--uts",
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
                "sh",
                "-e",
            ])
            .env_clear()
            .env("PATH", format!("{}:{path}", folder.join("stand-ins").display()))
            .env("HOME", home.join("home"))
            .env("HOST", &home)
            .env("HOSTS", &hosts)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log);
        let mut shell = command.spawn().expect("a shell in its own namespaces");
        let (commands, output) = (shell.stdin.take(), shell.stdout.take());
        let (tell, finished) = mpsc::channel();
        let lines = BufReader::new(output.expect("standard output is a pipe")).lines();
        thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| tell.send(line)));
        let commands = commands.expect("standard input is a pipe");
        let mut host = Host { name: name.to_owned(), folder: home, shell, commands, finished, blocks: 0 };
        host.send(&script);
        assert!(host.waits_for("ready"), "{name} does not start:\n{}", host.told());
        host
    }

    /// Runs commands in the host's shell, whose variables and folder are kept from one block to the
    /// next. Tells whether all of them succeeded; if not, the host is gone.
    #[must_use]
    pub(crate) fn run(&mut self, commands: &str) -> bool {
        self.blocks += 1;
        let block = self.folder.join(format!("blocks/{}.sh", self.blocks));
        fs::write(&block, commands).expect("a script");
        let mark = format!("finished {}", self.blocks);
        // A file of its own, so that a command that reads standard input can't swallow the rest.
        self.send(&format!(
            "set -x\n. {} < /dev/null >> {} 2>&1\n{{ set +x; }} 2> /dev/null\necho {mark}\n",
            block.display(),
            self.folder.join("log").display()
        ));
        self.waits_for(&mark)
    }

    fn send(&mut self, script: &str) {
        // A shell that has ended is noticed by the wait that follows.
        let _ = self.commands.write_all(script.as_bytes()).and_then(|()| self.commands.flush());
    }

    fn waits_for(&self, mark: &str) -> bool {
        self.finished.recv_timeout(PATIENCE).is_ok_and(|line| line == mark)
    }

    /// Runs `ip` in the host's network.
    fn ip(&self, arguments: &[&str]) {
        let network = format!("--net=/proc/{}/ns/net", self.shell.id());
        run("nsenter", &[&[network.as_str(), "ip"], arguments].concat());
    }

    /// The file or folder of this path on the host.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        match path.strip_prefix("~/") {
            Some(path) => self.folder.join("home").join(path),
            None => self.folder.join(path.trim_start_matches('/')),
        }
    }

    /// The trace of the commands with their output, and what the services have logged.
    pub(crate) fn told(&self) -> String {
        let mut told = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        for entry in fs::read_dir(self.folder.join("journal")).into_iter().flatten().flatten() {
            told += &format!("--- journal of {}\n", entry.file_name().to_string_lossy());
            told += &fs::read_to_string(entry.path()).unwrap_or_default();
        }
        told
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // With the shell all processes of its namespace end.
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}
