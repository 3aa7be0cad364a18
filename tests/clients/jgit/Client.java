import java.io.File;
import java.util.List;
import java.util.Map;
import org.eclipse.jgit.api.Git;
import org.eclipse.jgit.lib.Ref;
import org.eclipse.jgit.transport.RefSpec;
import org.eclipse.jgit.transport.TagOpt;
import org.eclipse.jgit.util.FS;

/**
 * Does with JGit what the matrix of clients asks for, one operation a run:
 *
 * <p>list URL | clone URL DIR | shallow URL DIR | fetch URL DIR | tags URL DIR | commit URL DIR ID
 */
final class Client {
  private static final RefSpec BRANCHES = new RefSpec("+refs/heads/*:refs/remotes/origin/*");
  private static final RefSpec TAGS = new RefSpec("+refs/tags/*:refs/tags/*");

  public static void main(String[] args) throws Exception {
    // Otherwise it measures the file system's clock for seconds, in every home anew.
    FS.FileStoreAttributes.setBackground(true);
    switch (args[0]) {
      case "version" -> System.out.println(Git.class.getPackage().getImplementationVersion());
      case "list" -> list(args[1]);
      case "clone" ->
          Git.cloneRepository().setURI(args[1]).setDirectory(new File(args[2])).call().close();
      case "shallow" ->
          Git.cloneRepository()
              .setURI(args[1])
              .setDirectory(new File(args[2]))
              .setDepth(1)
              .setTagOption(TagOpt.NO_TAGS)
              .setCloneAllBranches(false)
              .setBranchesToClone(List.of("refs/heads/main"))
              .setBranch("refs/heads/main")
              .call()
              .close();
      case "fetch" -> fetch(args[2], BRANCHES);
      case "tags" -> fetch(args[2], TAGS);
      case "commit" -> commit(args[1], args[2], args[3]);
      default -> throw new IllegalArgumentException(args[0]);
    }
    System.exit(0); // without its background threads
  }

  private static void list(String url) throws Exception {
    Map<String, Ref> refs = Git.lsRemoteRepository().setRemote(url).callAsMap();
    for (Ref ref : refs.values()) {
      System.out.println(ref.getObjectId().name() + "\t" + ref.getName());
      if (ref.getPeeledObjectId() != null) {
        System.out.println(ref.getPeeledObjectId().name() + "\t" + ref.getName() + "^{}");
      }
    }
  }

  private static void fetch(String directory, RefSpec what) throws Exception {
    try (Git git = Git.open(new File(directory))) {
      git.fetch().setRemote("origin").setRefSpecs(what).call();
    }
  }

  private static void commit(String url, String directory, String id) throws Exception {
    try (Git git = Git.init().setDirectory(new File(directory)).call()) {
      git.fetch().setRemote(url).setRefSpecs(new RefSpec(id + ":refs/heads/pinned")).call();
    }
  }
}
