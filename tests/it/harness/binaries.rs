//! Finds the servers' binaries, and the user they may run as.
//!
//! Order: environment (`PG_BIN`, `NATS_SERVER`, `PROMETHEUS`, `CHROMIUM`, `REDIS_SERVER`,
//! `VALGRIND`), PATH, the distributions' directories, `.tools`.
//! What is missing is fetched by `scripts/tools`; a test never skips for want of a server.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::process::run;

/// Where a distribution keeps Postgres, one directory per major version.
const POSTGRES_HOMES: [&str; 4] = [
    "/usr/lib/postgresql",
    "/usr",
    "/opt/homebrew/opt",
    "/usr/local/opt",
];

/// The oldest versions that outjet supports.
const POSTGRES_OLDEST: u32 = 14;
const NATS_OLDEST: (u32, u32) = (2, 10);

/// A Postgres installation.
#[derive(Clone, Debug)]
pub(crate) struct PostgresBuild {
    /// The directory with `postgres` and `initdb` in it.
    pub(crate) bin: PathBuf,
    /// Major version.
    pub(crate) major: u32,
    /// What `postgres --version` says.
    pub(crate) version: String,
}

/// All usable builds of this major version (any, if `None`), the preferred one first.
pub(crate) fn postgres(major: Option<u32>) -> Vec<PostgresBuild> {
    let find = || {
        let mut builds = postgres_directories();
        builds.retain(|build| major.is_none_or(|major| build.major == major));
        builds
    };
    let arguments: &[&str] = match major {
        None => &[],
        Some(_) => &["--postgres-matrix"],
    };
    let mut builds = find();
    if builds.is_empty() {
        fetch(arguments);
        builds = find();
    }
    assert!(
        !builds.is_empty(),
        "no Postgres {}: type `scripts/tools {}` or set PG_BIN",
        major.map_or(">= 14".to_owned(), |major| major.to_string()),
        arguments.join(" "),
    );
    builds
}

/// A build of this major version with all its programs, to upgrade from or to.
pub(crate) fn whole_postgres(major: u32) -> PostgresBuild {
    const PROGRAMS: [&str; 3] = ["pg_upgrade", "pg_controldata", "pg_resetwal"];
    let find = || {
        let apart = listed(&tools().join("upgrade")).into_iter();
        let apart = apart.filter_map(|path| postgres_build(path.join("bin")));
        let mut builds = postgres_directories().into_iter().chain(apart);
        let has_all = |bin: &Path| PROGRAMS.iter().all(|name| bin.join(name).exists());
        builds.find(|build| build.major == major && has_all(&build.bin))
    };
    let found = find().or_else(|| {
        fetch(&["--upgrade"]);
        find()
    });
    found.unwrap_or_else(|| panic!("no Postgres {major}: type `scripts/tools --upgrade`"))
}

/// The build in this directory.
pub(crate) fn postgres_in(bin: &Path) -> PostgresBuild {
    postgres_build(bin.to_owned())
        .unwrap_or_else(|| panic!("no Postgres >= 14 with initdb in {}", bin.display()))
}

/// The preferred nats-server whose version starts with `version`, or is at least that if it begins
/// with `>=` (any, if `None`).
pub(crate) fn nats_server(version: Option<&str>) -> PathBuf {
    let find = || nats_servers().into_iter().find(|path| suits(path, version));
    let found = find().or_else(|| {
        fetch(&[]);
        find()
    });
    let found = found.unwrap_or_else(|| {
        let version = version.unwrap_or(">= 2.10");
        panic!("no nats-server {version}: type `scripts/tools` or set NATS_SERVER")
    });
    staged(&found)
}

/// Prometheus, one that has promtool.
pub(crate) fn prometheus() -> PathBuf {
    let fetched = tools().join("prometheus/usr/bin/prometheus");
    let with_promtool = |path: &PathBuf| beside(path, "promtool").is_some();
    let flag = ("--watchers", "PROMETHEUS");
    extra(flag, &["prometheus"], &fetched, with_promtool)
}

/// The promtool of `prometheus()`.
pub(crate) fn promtool() -> PathBuf {
    beside(&prometheus(), "promtool").expect("a Prometheus with promtool")
}

/// A browser that runs without a display.
pub(crate) fn chromium() -> PathBuf {
    let names = [
        "chromium-headless-shell",
        "chromium",
        "chromium-browser",
        "google-chrome",
    ];
    let fetched = tools().join("chromium/chromium");
    extra(("--watchers", "CHROMIUM"), &names, &fetched, |_| true)
}

/// Redis, or what calls itself so.
pub(crate) fn redis_server() -> PathBuf {
    let fetched = tools().join("redis/redis-server");
    let names = ["redis-server", "valkey-server"];
    extra(("--redis", "REDIS_SERVER"), &names, &fetched, |_| true)
}

/// For `scripts/bench`, to count instructions.
pub(crate) fn valgrind() -> PathBuf {
    let fetched = tools().join("valgrind/valgrind");
    let flag = ("--valgrind", "VALGRIND");
    extra(flag, &["valgrind"], &fetched, |_| true)
}

/// What few tests need: from the environment, PATH, or fetched by a flag of `scripts/tools`.
fn extra(
    (flag, variable): (&str, &str),
    names: &[&str],
    fetched: &Path,
    suits: impl Fn(&PathBuf) -> bool,
) -> PathBuf {
    let find = || {
        let asked = std::env::var_os(variable).map(PathBuf::from);
        let on_path = names.iter().filter_map(|name| on_path(name));
        let fetched = fetched.is_file().then(|| fetched.to_owned());
        let mut found = asked.into_iter().chain(on_path).chain(fetched);
        found.find(&suits)
    };
    let found = find().or_else(|| {
        fetch(&[flag]);
        find()
    });
    found.unwrap_or_else(|| panic!("type `scripts/tools {flag}` or set {variable}"))
}

/// Makes `command` run as an ordinary user if we are root: Postgres refuses to run as root.
pub(crate) fn drop_root(command: &mut Command) -> &mut Command {
    match server_user() {
        Some((uid, gid)) => command.uid(uid).gid(gid),
        None => command,
    }
}

/// Gives a file to the user that the servers run as.
pub(crate) fn give_to_server(path: &Path) {
    if let Some((uid, gid)) = server_user() {
        chown(path, Some(uid), Some(gid)).expect("chown a file of ours");
    }
}

/// A directory that survives the test, for what is made once: under `target/`, or, where root
/// works in a place that the servers' user cannot enter, under the system's temporary directory.
pub(crate) fn workshop() -> PathBuf {
    let usual = option_env!("CARGO_TARGET_TMPDIR").map(PathBuf::from);
    let usual = usual.unwrap_or_else(|| profile_directory().with_file_name("tmp"));
    fs::create_dir_all(&usual).expect("create target/tmp");
    let workshop = if enterable(&usual) {
        usual
    } else {
        let unique = fs::metadata(&usual).expect("target/tmp").ino();
        std::env::temp_dir().join(format!("outjet-it-{unique}"))
    };
    fs::create_dir_all(&workshop).expect("create the directory for templates");
    workshop
}

/// The program under test. Cargo names it to tests; for an example it stands one directory up.
pub(crate) fn outjet() -> PathBuf {
    let named = option_env!("CARGO_BIN_EXE_outjet").map(PathBuf::from);
    named.unwrap_or_else(|| profile_directory().join("outjet"))
}

/// `target/release` or the like: cargo puts tests and examples into a directory below it.
fn profile_directory() -> PathBuf {
    let ourselves = std::env::current_exe().expect("the path of this program");
    let directory = ourselves.ancestors().nth(2).expect("a path below target");
    directory.to_owned()
}

/// Waits until no other test process holds the lock of this name. Tests are processes of their
/// own under nextest, so a lock in memory would not do.
pub(crate) fn lock(name: &str) -> File {
    let path = workshop().join(format!("{name}.lock"));
    let file = File::create(path).expect("create a lock file");
    file.lock().expect("lock a file");
    file
}

fn postgres_directories() -> Vec<PostgresBuild> {
    let asked = std::env::var_os("PG_BIN").map(PathBuf::from);
    let on_path = on_path("postgres").and_then(|postgres| beside(&postgres, "initdb"));
    let on_path = on_path.and_then(|initdb| initdb.parent().map(Path::to_owned));
    let mut homes: Vec<PathBuf> = POSTGRES_HOMES.map(PathBuf::from).to_vec();
    homes.push(tools());
    let installed = homes.iter().flat_map(|home| {
        let mut found = listed(home);
        found.retain(|path| home.ends_with("postgresql") || named(path, &["postgres", "pgsql"]));
        found.into_iter().map(|path| path.join("bin"))
    });
    let mut builds: Vec<PostgresBuild> = Vec::new();
    for bin in asked.into_iter().chain(on_path).chain(installed) {
        if !builds.iter().any(|build| build.bin == bin) {
            builds.extend(postgres_build(bin));
        }
    }
    builds
}

fn postgres_build(bin: PathBuf) -> Option<PostgresBuild> {
    let version = version_of(&bin.join("postgres"))?;
    let (major, _) = numbers(&version)?;
    (major >= POSTGRES_OLDEST && bin.join("initdb").exists()).then_some(PostgresBuild {
        bin,
        major,
        version,
    })
}

fn nats_servers() -> Vec<PathBuf> {
    let asked = std::env::var_os("NATS_SERVER").map(PathBuf::from);
    let mut fetched = listed(&tools());
    fetched.retain(|path| named(path, &["nats-server"]));
    let fetched = fetched.into_iter().map(|path| path.join("nats-server"));
    let found = asked.into_iter().chain(on_path("nats-server"));
    found.chain(fetched).collect()
}

fn suits(nats_server: &Path, version: Option<&str>) -> bool {
    let Some(found) = version_of(nats_server) else {
        return false;
    };
    let found = found.rsplit(['v', ' ']).next().unwrap_or_default();
    let parts = |version: &str| -> Vec<u32> {
        let parts = version.split('.').map(str::parse);
        parts.map_while(Result::ok).collect()
    };
    match version.map(|version| (version, version.strip_prefix(">="))) {
        Some((_, Some(oldest))) => parts(found) >= parts(oldest.trim()),
        Some((version, None)) => format!("{found}.").starts_with(&format!("{version}.")),
        None => numbers(found).is_some_and(|found| found >= NATS_OLDEST),
    }
}

fn on_path(program: &str) -> Option<PathBuf> {
    first_in(&std::env::var_os("PATH")?, program)
}

/// The first program of this name in a list of directories like PATH. Links are not resolved: some
/// programs do what the name says that they are called by. Debian's redis-server is a link to
/// redis-check-rdb, and under that name it checks a file instead.
pub(crate) fn first_in(path: &OsStr, program: &str) -> Option<PathBuf> {
    let mut found = std::env::split_paths(path).map(|directory| directory.join(program));
    // Absolute, because servers are started in directories of their own.
    std::path::absolute(found.find(|path| path.is_file())?).ok()
}

/// What belongs to a program: beside the file that the program is a link to, or beside the link.
pub(crate) fn beside(program: &Path, other: &str) -> Option<PathBuf> {
    let real = program.canonicalize().ok()?;
    let places = [&real, program].map(|place| place.with_file_name(other));
    places.into_iter().find(|place| place.is_file())
}

fn tools() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools")
}

fn fetch(arguments: &[&str]) {
    let _one_at_a_time = lock("tools");
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/tools"));
    command.args(arguments);
    run(command);
}

/// What a directory holds, highest version first; nothing if it does not exist.
fn listed(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    let version = |path: &PathBuf| -> Vec<u32> {
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or("");
        let digits = name.split(|letter: char| !letter.is_ascii_digit());
        digits.filter_map(|digits| digits.parse().ok()).collect()
    };
    paths.sort_by_key(|path| std::cmp::Reverse(version(path)));
    paths
}

fn named(path: &Path, starts: &[&str]) -> bool {
    let name = path.file_name().and_then(OsStr::to_str).unwrap_or("");
    starts.iter().any(|start| name.starts_with(start))
}

fn version_of(binary: &Path) -> Option<String> {
    let output = Command::new(binary).arg("--version").output().ok()?;
    let said = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| said.trim().to_owned())
}

/// The first two numbers of a version: `postgres (PostgreSQL) 15.18 (Debian …)` is (15, 18).
fn numbers(version: &str) -> Option<(u32, u32)> {
    let start = version.find(|letter: char| letter.is_ascii_digit())?;
    let mut parts = version[start..].split(|letter: char| !letter.is_ascii_digit());
    let major = parts.next()?.parse().ok()?;
    let minor = parts.next().and_then(|part| part.parse().ok());
    Some((major, minor.unwrap_or(0)))
}

/// The binary at `path`, or, if the servers' user cannot get at it, a copy of its whole
/// installation in the workshop.
pub(crate) fn staged(path: &Path) -> PathBuf {
    let real = path.canonicalize().expect("a program that was found");
    if enterable(path) && enterable(&real) {
        return path.to_owned();
    }
    let linked = path.is_symlink();
    let source = if linked { &real } else { path };
    let (home, inner) = match source.parent() {
        Some(bin) if bin.ends_with("bin") => (bin.parent().expect("a home"), Path::new("bin")),
        Some(home) => (home, Path::new("")),
        None => unreachable!("a binary stands in a directory"),
    };
    let name = home.file_name().expect("a home has a name");
    let copy = workshop().join("staged").join(name);
    let _one_at_a_time = lock("staged");
    if !copy.exists() {
        fs::create_dir_all(copy.parent().expect("staged")).expect("create a directory");
        let partial = copy.with_extension("partial");
        let mut command = Command::new("cp");
        command.arg("-a").arg(home).arg(&partial);
        run(command);
        fs::rename(&partial, &copy).expect("rename a directory of ours");
    }
    let name = |path: &Path| path.file_name().expect("a binary has a name").to_owned();
    let program = copy.join(inner).join(name(path));
    if linked && !program.exists() {
        symlink(name(source), &program).expect("link a program to its own name");
    }
    program
}

/// Whether the servers' user can reach this path: each directory above it lets others in.
fn enterable(path: &Path) -> bool {
    let open = |path: &Path| {
        fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o001 != 0)
    };
    server_user().is_none() || path.ancestors().skip(1).all(open)
}

/// Whom servers run as when we are root.
fn server_user() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").expect("read /etc/passwd");
    let ids = |name: &str| {
        let line = users
            .lines()
            .find(|line| line.split(':').next() == Some(name))?;
        let mut fields = line.split(':').skip(2);
        let uid = fields.next()?.parse().ok()?;
        Some((uid, fields.next()?.parse().ok()?))
    };
    let user = ids("postgres").or_else(|| ids("nobody"));
    Some(user.expect("a user postgres or nobody, because Postgres refuses to run as root"))
}
