//! One process of QEMU: how it is started, its monitor (QMP), and its end.
//!
//! QEMU translates the machine's instructions itself (TCG): no test host is asked for KVM, and none that we know has it.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// How long QEMU may take to answer anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where disks besides the first are plugged in. A machine that is resumed must have what it had when it was saved, so the
/// places are there from the start, and only what is in them comes and goes.
pub const PORTS: usize = 8;

/// The name of the saved machine in its disk.
pub const SAVED: &str = "ready";

/// A running machine. It is killed with its handle, and with the thread that started it.
#[derive(Debug)]
pub struct Qemu {
    child: Child,
    monitor: BufReader<UnixStream>,
}

/// What the machine is made of besides files: a saved machine can be resumed only by an equal one.
pub fn hardware() -> Vec<String> {
    let mut words = words(
        "-machine q35 -accel tcg,thread=multi,tb-size=256 -cpu max -smp 2 -m 1024 -display none -nodefaults -no-reboot \
         -serial chardev:console -serial chardev:wire -serial chardev:told \
         -device virtio-blk-pci,drive=root,serial=root",
    );
    for port in 0..PORTS {
        words.extend(words_of_port(port));
    }
    // Without the security modules: nobody here has rules for them, and an emulated processor takes its time over them.
    let kernel = "console=ttyS0 rw quiet panic=-1 mitigations=off tsc=reliable no_timer_check lsm=";
    words.extend(["-append".to_owned(), kernel.to_owned()]);
    words
}

fn words_of_port(port: usize) -> Vec<String> {
    words(&format!("-device pcie-root-port,id=port{port},chassis={}", port + 1))
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

impl Qemu {
    /// Starts a machine that stands still until `go`. Its sockets and what it says are in `directory`.
    pub fn start(directory: &Path, image: &Path, root: &Path, resume: bool) -> Self {
        let at = |name: &str| directory.join(name).display().to_string();
        for socket in ["wire", "monitor"] {
            let _may_be_missing = fs::remove_file(at(socket));
        }
        let log = fs::File::options().create(true).append(true).open(at("qemu.log")).expect("a log");
        // setpriv: neither a killed nor a crashed test leaves a machine behind.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--", "qemu-system-x86_64", "-S"])
            .arg("-kernel")
            .arg(image.join("vmlinuz"))
            .arg("-initrd")
            .arg(image.join("initrd.img"))
            .args(["-chardev", &format!("file,id=console,path={},append=on", at("console"))])
            .args(["-chardev", &format!("socket,id=wire,path={},server=on,wait=off", at("wire"))])
            .args(["-chardev", &format!("file,id=told,path={},append=on", at("told"))])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", at("monitor"))])
            .args(["-drive", &format!("file={},if=none,id=root,format=qcow2,discard=unmap", root.display())])
            .args(hardware());
        if resume {
            command.args(["-loadvm", SAVED]);
        }
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
        let mut child = command.spawn().expect("setpriv starts qemu-system-x86_64");
        let monitor = connect(&mut child, directory, "monitor");
        let mut this = Self { child, monitor: BufReader::new(monitor) };
        let greeting = this.message();
        assert!(greeting.get("QMP").is_some(), "{greeting}");
        this.ask("qmp_capabilities", json!({}));
        this
    }

    pub fn wire(&mut self, directory: &Path) -> UnixStream {
        connect(&mut self.child, directory, "wire")
    }

    /// Lets the machine run.
    pub fn go(&mut self) {
        self.ask("cont", json!({}));
    }

    /// Returns the answer to a command of the monitor.
    pub fn ask(&mut self, command: &str, arguments: Value) -> Value {
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(self.monitor.get_mut(), "{request}").expect("qemu listens");
        loop {
            let mut message = self.message();
            assert!(message.get("error").is_none(), "{request}: {message}");
            if let Some(answer) = message.get_mut("return") {
                return answer.take();
            }
        }
    }

    /// Gives a command to QEMU's monitor for people: it has some that the other lacks, and says only what went wrong.
    pub fn tell(&mut self, command: &str) {
        let answer = self.ask("human-monitor-command", json!({ "command-line": command }));
        assert_eq!(answer, json!(""), "{command}");
    }

    /// Waits for an event about a device.
    pub fn wait_for(&mut self, event: &str, device: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let message = self.message();
            if message["event"] == event && message["data"]["device"] == device {
                return;
            }
            assert!(Instant::now() < deadline, "{event} of {device} did not come");
        }
    }

    /// Waits until the machine switched itself off.
    pub fn wait_for_end(&mut self, patience: Duration) {
        let deadline = Instant::now() + patience;
        while self.child.try_wait().expect("it is our child").is_none() {
            assert!(Instant::now() < deadline, "the machine is still on after {patience:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn message(&mut self) -> Value {
        let mut line = String::new();
        self.monitor.read_line(&mut line).expect("qemu answers in time");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: from qemu came {line:?}"))
    }
}

impl Drop for Qemu {
    /// The power is cut: what the machine had not given to its disks is gone.
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _status = self.child.wait();
    }
}

fn connect(child: &mut Child, directory: &Path, socket: &str) -> UnixStream {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Ok(stream) = UnixStream::connect(directory.join(socket)) {
            stream.set_read_timeout(Some(PATIENCE)).expect("a time limit");
            return stream;
        }
        let ended = child.try_wait().expect("it is our child");
        if ended.is_some() || Instant::now() > deadline {
            let log = fs::read_to_string(directory.join("qemu.log")).unwrap_or_default();
            panic!("qemu does not listen at {socket} ({ended:?}): {log}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
