//! The channel from Rust, C and the shell: the examples of the documentation, compiled and run with a server on this host.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use ringfort_qemu_tests::local::LocalServer;
use ringfort_qemu_tests::place::Build;
use ringfort_qemu_tests::provision::{host_programs, workspace_program};

/// A server that listens for programs of this host.
struct Scene {
    server: LocalServer,
    address: String,
}

impl Scene {
    fn new() -> Result<Scene> {
        let server = LocalServer::start("64MiB")?;
        Ok(Scene { address: server.address(), server })
    }

    /// Runs it twice, so that the second run finds what the first has left.
    fn keeps_notes(&self, program: &mut Command) -> Result<()> {
        program.arg(&self.address).args(["a line", "and another"]);
        let lines = "a line\nand another\n";
        let once = output_of(program)?;
        ensure!(once == format!("{lines}log: 19 bytes\n"), "the first time: {once}");
        let twice = output_of(program)?;
        ensure!(twice == format!("{lines}{lines}log: 38 bytes\n"), "the second time: {twice}");
        Ok(())
    }

    fn end(self) -> Result<()> {
        self.server.end()
    }
}

/// What a program writes, which must succeed.
fn output_of(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("running {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}: {said}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-driver").join(path)
}

fn cargo() -> Command {
    Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// `libringfort`, its header and its pkg-config file, as they are installed.
struct Library {
    prefix: PathBuf,
}

impl Library {
    fn install(prefix: PathBuf) -> Result<Library> {
        let build = Build::current()?;
        let profile = if build.profile == "debug" { "dev" } else { &build.profile };
        let mut install = Command::new(source("capi/install"));
        install
            .arg(&prefix)
            .arg(profile)
            .env("CARGO", cargo().get_program())
            .env("CARGO_TARGET_DIR", &build.target);
        output_of(&mut install)?;
        Ok(Library { prefix })
    }

    /// Only what a program is linked with for good.
    fn without_shared(self) -> Result<Library> {
        for name in ["libringfort.so", "libringfort.so.0"] {
            fs::remove_file(self.prefix.join("lib").join(name))?;
        }
        Ok(self)
    }

    fn lib(&self) -> PathBuf {
        self.prefix.join("lib")
    }

    /// What pkg-config says with `options`.
    fn flags(&self, options: &[&str]) -> Result<Vec<String>> {
        let mut command = match Command::new("pkg-config").arg("--version").output() {
            Ok(_) => Command::new("pkg-config"),
            Err(_) => host_programs("pkgconf-bin")?.command("pkgconf"),
        };
        command.env("PKG_CONFIG_PATH", self.lib().join("pkgconfig")).args(options).arg("ringfort");
        Ok(output_of(&mut command)?.split_whitespace().map(str::to_owned).collect())
    }

    /// Compiles a program of one file with every warning an error.
    fn compile(&self, file: &str, options: &[&str]) -> Result<PathBuf> {
        let program = self.prefix.join(Path::new(file).file_stem().unwrap_or_default());
        let mut cc = Command::new("cc");
        cc.args(["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]).arg(source(file));
        cc.args(self.flags(options)?).arg("-o").arg(&program);
        output_of(&mut cc).context("is there a C compiler? `apt-get install gcc libc6-dev` brings one")?;
        Ok(program)
    }

    /// A program that finds the shared library of this installation, or none at all.
    fn run(&self, program: &Path, shared: bool) -> Command {
        let mut command = Command::new(program);
        match shared {
            true => command.env("LD_LIBRARY_PATH", self.lib()),
            false => command.env_remove("LD_LIBRARY_PATH"),
        };
        command
    }
}

#[test]
fn a_c_program_uses_a_volume_through_either_library() {
    let folder = tempfile::tempdir().unwrap();
    let shared = Library::install(folder.path().join("shared")).unwrap();
    let fixed = Library::install(folder.path().join("fixed")).unwrap().without_shared().unwrap();
    for (library, is_shared, options) in [
        (&shared, true, &["--cflags", "--libs"][..]),
        (&fixed, false, &["--static", "--cflags", "--libs"][..]),
    ] {
        let scene = Scene::new().unwrap();
        let notes = library.compile("capi/examples/notes.c", options).unwrap();
        scene.keeps_notes(&mut library.run(&notes, is_shared)).unwrap();
        scene.end().unwrap();

        let scene = Scene::new().unwrap();
        let vocabulary = library.compile("capi/tests/vocabulary.c", options).unwrap();
        let said = output_of(library.run(&vocabulary, is_shared).arg(&scene.address)).unwrap();
        assert_eq!(said, "all well\n");
        scene.end().unwrap();
    }
    // One was linked with the shared library, as it names itself, and the other was not.
    assert!(!shared.run(&shared.prefix.join("notes"), false).arg("-").status().unwrap().success());
    assert!(!fixed.lib().join("libringfort.so.0").exists());
}

/// An example of the Rust library, built.
fn rust_example(name: &str) -> Result<Command> {
    let build = Build::current()?;
    let mut cargo = cargo();
    cargo.args(["build", "--quiet", "--package", "ringfort-guest", "--example", name, "--target-dir"]);
    cargo.arg(&build.target).arg("--profile");
    cargo.arg(if build.profile == "debug" { "dev" } else { &build.profile });
    output_of(&mut cargo)?;
    Ok(Command::new(build.target.join(&build.profile).join("examples").join(name)))
}

/// A script of the shell that finds `rf`.
fn script(name: &str) -> Result<Command> {
    let rf = workspace_program("ringfort-rf", "rf")?;
    let mut folders = vec![rf.parent().context("a program in no folder")?.to_owned()];
    folders.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
    let mut command = Command::new("sh");
    command.arg("-e").arg(source("examples").join(name)).env("PATH", env::join_paths(folders)?);
    Ok(command)
}

#[test]
fn a_rust_program_uses_a_volume() {
    let scene = Scene::new().unwrap();
    scene.keeps_notes(&mut rust_example("notes").unwrap()).unwrap();
    scene.end().unwrap();
}

#[test]
fn a_shell_script_uses_a_volume() {
    let scene = Scene::new().unwrap();
    scene.keeps_notes(&mut script("notes.sh").unwrap()).unwrap();
    scene.end().unwrap();
}

#[test]
fn what_the_readme_shows_is_what_runs() {
    let readme = fs::read_to_string(source("../README.md")).unwrap();
    for (language, file) in
        [("sh", "examples/hello.sh"), ("rust", "examples/hello.rs"), ("c", "capi/examples/hello.c")]
    {
        let text = fs::read_to_string(source(file)).unwrap();
        assert!(readme.contains(&format!("```{language}\n{text}```\n")), "README.md does not show {file}");
    }
    let installed = tempfile::tempdir().unwrap();
    let library = Library::install(installed.path().to_owned()).unwrap();
    let c = library.compile("capi/examples/hello.c", &["--cflags", "--libs"]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for mut program in [script("hello.sh").unwrap(), rust_example("hello").unwrap(), library.run(&c, true)] {
        let scene = Scene::new().unwrap();
        program.env("RINGFORT_CONNECT", &scene.address).env("TMPDIR", folder.path());
        assert_eq!(output_of(&mut program).unwrap(), "hello\n", "{program:?}");
        scene.end().unwrap();
    }
    assert_eq!(fs::read_to_string(folder.path().join("copies/one")).unwrap(), "hello\n");
}
