use super::*;

const WEB: &str = "0b7d2c1e-4c1a-4a57-9f0e-000000000001";
const DB: &str = "0b7d2c1e-4c1a-4a57-9f0e-000000000002";
const ID: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
const OTHER_ID: &str = "0000d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

/// A directory that stands for the pods' control group. Inode numbers are those of its file system.
struct Tree {
    directory: tempfile::TempDir,
    cgroups: PodCgroups,
    name: &'static str,
}

impl Tree {
    fn new(name: &'static str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join(name)).unwrap();
        let cgroups = PodCgroups::new(directory.path().join(name));
        Self { directory, cgroups, name }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join(self.name).join(path)
    }

    fn make(&self, path: &str) -> CgroupId {
        fs::create_dir_all(self.path(path)).unwrap();
        self.id(path)
    }

    fn id(&self, path: &str) -> CgroupId {
        CgroupId(fs::metadata(self.path(path)).unwrap().ino())
    }

    async fn found(&self, id: CgroupId) -> Option<(String, Option<String>)> {
        let owner = self.cgroups.find(id).await.unwrap()?;
        Some((owner.pod.to_string(), owner.container.map(|id| id.to_string())))
    }

    async fn pod_of(&self, id: CgroupId) -> Option<String> {
        self.found(id).await.map(|(pod, _)| pod)
    }
}

fn some(pod: &str, container: Option<&str>) -> Option<(String, Option<String>)> {
    Some((pod.to_owned(), container.map(str::to_owned)))
}

#[tokio::test]
async fn a_pods_own_group_and_all_groups_in_it_are_the_pods() {
    let tree = Tree::new("kubepods");
    let pod = tree.make(&format!("burstable/pod{WEB}"));
    let container = tree.make(&format!("burstable/pod{WEB}/{ID}"));
    let nested = tree.make(&format!("burstable/pod{WEB}/{ID}/docker/{OTHER_ID}"));
    assert_eq!(tree.found(pod).await, some(WEB, None));
    assert_eq!(tree.found(container).await, some(WEB, Some(ID)));
    assert_eq!(tree.found(nested).await, some(WEB, Some(ID)), "the runtime's name of the container, not one in it");
    for class in ["", "burstable"] {
        assert_eq!(tree.found(tree.id(class)).await, None, "{class}");
    }
    let guaranteed = tree.make(&format!("pod{DB}/{OTHER_ID}"));
    assert_eq!(tree.found(guaranteed).await, some(DB, Some(OTHER_ID)));
}

#[tokio::test]
async fn the_directories_of_systemd_are_found_below_any_parent() {
    for slice in ["kubepods.slice", "kubelet-kubepods.slice"] {
        let tree = Tree::new(slice);
        let prefix = slice.trim_end_matches(".slice");
        let pod = format!("{prefix}-burstable.slice/{prefix}-burstable-pod{}.slice", WEB.replace('-', "_"));
        let container = tree.make(&format!("{pod}/cri-containerd-{ID}.scope"));
        assert_eq!(tree.found(container).await, some(WEB, Some(ID)));
        assert_eq!(tree.cgroups.of_pod(WEB).await.unwrap(), Some(tree.id(&pod)));
    }
}

/// A tenant with a writable cgroup file system creates directories with the name of another pod.
#[tokio::test]
async fn no_pod_can_pose_as_another_by_directories_below_its_own() {
    let tree = Tree::new("kubepods");
    let victim = tree.make(&format!("burstable/pod{DB}/{OTHER_ID}"));
    for below in ["", "kubepods/", "kubepods/burstable/", "burstable/"] {
        let forged = tree.make(&format!("burstable/pod{WEB}/{ID}/{below}pod{DB}"));
        let inner = tree.make(&format!("burstable/pod{WEB}/{ID}/{below}pod{DB}/{OTHER_ID}"));
        for id in [forged, inner] {
            assert_eq!(tree.found(id).await, some(WEB, Some(ID)), "{below}");
        }
    }
    assert_eq!(tree.pod_of(victim).await.as_deref(), Some(DB));
    // Elsewhere in the hierarchy, too.
    let elsewhere = tree.make(&format!("user.slice/kubepods/pod{DB}"));
    let beside = tree.directory.path().join(format!("user.slice/kubepods/pod{DB}"));
    fs::create_dir_all(&beside).unwrap();
    for id in [elsewhere, CgroupId(fs::metadata(&beside).unwrap().ino())] {
        assert_eq!(tree.pod_of(id).await, None);
    }
    assert_eq!(tree.cgroups.of_pod(DB).await.unwrap(), Some(tree.id(&format!("burstable/pod{DB}"))));
}

#[tokio::test]
async fn links_lead_nowhere() {
    let tree = Tree::new("kubepods");
    let own = tree.make(&format!("pod{WEB}"));
    std::os::unix::fs::symlink(tree.path(&format!("pod{WEB}")), tree.path(&format!("pod{DB}"))).unwrap();
    assert_eq!(tree.pod_of(own).await.as_deref(), Some(WEB));
    assert_eq!(tree.cgroups.of_pod(DB).await.unwrap(), None);
}

#[tokio::test]
async fn deleted_directories_are_forgotten_with_the_next_reading() {
    let tree = Tree::new("kubepods");
    let web = tree.make(&format!("burstable/pod{WEB}/{ID}"));
    assert_eq!(tree.pod_of(web).await.as_deref(), Some(WEB));
    assert_eq!(tree.cgroups.count(), 2);
    fs::remove_dir_all(tree.path(&format!("burstable/pod{WEB}"))).unwrap();
    assert_eq!(tree.cgroups.of_pod(WEB).await.unwrap(), None);
    let db = tree.make(&format!("besteffort/pod{DB}"));
    assert_eq!(tree.pod_of(db).await.as_deref(), Some(DB));
    assert_eq!(tree.cgroups.count(), 1);
    assert_eq!(tree.cgroups.known(web).filter(|_| web != db), None);
}

#[tokio::test]
async fn a_pod_with_many_directories_costs_a_bounded_number_and_hides_no_other() {
    let tree = Tree::new("kubepods");
    let container = tree.make(&format!("pod{WEB}/{ID}"));
    for number in 0..2 * MAX_OF_POD {
        tree.make(&format!("pod{WEB}/{ID}/{number}/below"));
    }
    let second = tree.make(&format!("pod{WEB}/{OTHER_ID}"));
    let db = tree.make(&format!("pod{DB}/{OTHER_ID}"));
    for (id, pod) in [(container, WEB), (second, WEB), (db, DB)] {
        assert_eq!(tree.pod_of(id).await.as_deref(), Some(pod));
    }
    assert_eq!(tree.cgroups.count(), MAX_OF_POD + 2);
}

#[tokio::test]
async fn unknown_ids_cause_few_readings_however_many_ask() {
    let tree = Tree::new("kubepods");
    tree.make(&format!("pod{WEB}"));
    let (began, mut readings, mut last) = (Instant::now(), 0, None);
    let unknown = CgroupId(u64::MAX);
    let asks = (0..500).map(|_| tree.cgroups.find(unknown));
    for found in futures_util::future::join_all(asks).await {
        assert_eq!(found.unwrap(), None);
        let read = *tree.cgroups.0.read.lock().await;
        readings += usize::from(read != last);
        last = read;
    }
    assert_eq!(readings, 1, "one reading answers all that waited for it");
    for _ in 0..3 {
        assert_eq!(tree.pod_of(unknown).await, None);
    }
    assert!(began.elapsed() >= 3 * READ_AGAIN, "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_hierarchy_that_cannot_be_read_is_an_error_and_not_the_absence_of_a_pod() {
    let tree = Tree::new("kubepods");
    let web = tree.make(&format!("pod{WEB}"));
    fs::remove_dir_all(tree.path("")).unwrap();
    assert!(tree.cgroups.find(web).await.is_err());
    assert!(tree.cgroups.of_pod(WEB).await.is_err());
    tree.make("");
    let web = tree.make(&format!("pod{WEB}"));
    assert_eq!(tree.pod_of(web).await.as_deref(), Some(WEB), "it works again");
}
