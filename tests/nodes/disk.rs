//! A small disk for a test's database.

use crate::cluster::sql;
use crate::private_postgres::Server;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// A database that can run out of disk space: on its own file system where we may mount one, otherwise with triggers that
/// raise PostgreSQL's error for it.
pub(crate) enum Disk {
    Small(SmallDisk),
    Pretended { url: String },
}

pub(crate) struct SmallDisk {
    folder: TempDir,
    keeper: Child,
    url: String,
}

/// Size of the file system: a database with the schema and some rows.
const ROOM: &str = "40m";

/// Mounts, and unmounts when its standard input ends, which happens when the test ends.
const KEEPER: &str = r#"
    owner=$(id -u postgres 2>/dev/null || id -u nobody)
    mount -t tmpfs -o "size=$2,mode=0700,uid=$owner" none "$1" || exit 1
    echo ready
    read -r _
    umount -l "$1"
"#;

const TABLES: [&str; 5] = ["keys", "audit", "end_users", "usage", "nodes"];

// === impl Disk ===

impl Disk {
    /// A database with the schema on a disk of `server` that can be filled.
    pub(crate) async fn with_database(server: &Server) -> Self {
        // The first of them creates the template.
        let url = server.database().await;
        let Some(small) = SmallDisk::mount() else { return Self::Pretended { url } };
        let place = small.folder.path().display();
        let make = format!("CREATE TABLESPACE small LOCATION '{place}'");
        server.superuser("postgres").await.batch_execute(&make).await.unwrap();
        let url = server.create("TEMPLATE keygate_template TABLESPACE small").await;
        Self::Small(SmallDisk { url, ..small })
    }

    pub(crate) fn url(&self) -> &str {
        match self {
            Self::Small(disk) => &disk.url,
            Self::Pretended { url } => url,
        }
    }

    pub(crate) fn fill(&self) {
        match self {
            Self::Small(disk) => {
                let filled = std::fs::write(disk.filler(), vec![0; 64 << 20]);
                assert_eq!(filled.unwrap_err().kind(), std::io::ErrorKind::StorageFull);
            }
            Self::Pretended { url } => {
                let say = "CREATE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS
                    $$ BEGIN RAISE EXCEPTION 'No space left on device' USING ERRCODE = '53100'; END $$;";
                let on = TABLES.map(|table| {
                    format!(
                        "CREATE TRIGGER no_room BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION no_room();"
                    )
                });
                sql(url, &(say.to_owned() + &on.concat()));
            }
        }
    }

    pub(crate) fn make_room(&self) {
        match self {
            Self::Small(disk) => std::fs::remove_file(disk.filler()).unwrap(),
            Self::Pretended { url } => sql(url, "DROP FUNCTION no_room CASCADE"),
        }
    }
}

// === impl SmallDisk ===

impl SmallDisk {
    fn mount() -> Option<Self> {
        let folder = tempfile::Builder::new().prefix("keygate-disk-").tempdir().unwrap();
        // PostgreSQL's user needs access.
        let open: std::fs::Permissions = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(folder.path(), open).unwrap();
        let mut keeper = Command::new("sh")
            .args(["-c", KEEPER, "sh"])
            .arg(folder.path())
            .arg(ROOM)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(keeper.stdout.take().unwrap()).read_line(&mut line).unwrap();
        if line.trim() != "ready" {
            keeper.wait().unwrap();
            return None;
        }
        Some(Self { folder, keeper, url: String::new() })
    }

    fn filler(&self) -> PathBuf {
        self.folder.path().join("filler")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Self::Small(disk) = self {
            drop(disk.keeper.stdin.take());
            drop(disk.keeper.wait());
        }
    }
}
