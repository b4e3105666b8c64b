import java.io.FileOutputStream;
import java.io.IOException;

class Write {
    public static void main(String[] args) throws Exception {
        String last = null;
        while (true) {
            String now;
            try (FileOutputStream f = new FileOutputStream(args[0])) {
                f.write('x');
                now = "ok";
            } catch (IOException e) {
                now = e.toString();
            }
            if (!now.equals(last)) System.out.println(now);
            last = now;
            Thread.sleep(1);
        }
    }
}
