// One request, one call: what Java makes of a failed system call. Answers {"failure": ""} or the exception as Java shows it.

import com.sun.net.httpserver.HttpServer;
import java.io.FileOutputStream;
import java.io.IOException;
import java.net.HttpURLConnection;
import java.net.InetSocketAddress;
import java.net.Socket;
import java.net.URL;
import java.net.URLDecoder;
import java.nio.charset.StandardCharsets;
import java.util.HashMap;
import java.util.Map;
import java.util.concurrent.Executors;

public class App {
    static void perform(Map<String, String> q) throws IOException {
        switch (q.get("op")) {
            case "write":
                try (FileOutputStream file = new FileOutputStream(q.get("path"))) {
                    file.write('x');
                }
                break;
            case "fsync":
                try (FileOutputStream file = new FileOutputStream(q.get("path"))) {
                    file.getChannel().force(true);
                }
                break;
            case "connect":
                int colon = q.get("addr").lastIndexOf(':');
                String host = q.get("addr").substring(0, colon);
                new Socket(host, Integer.parseInt(q.get("addr").substring(colon + 1))).close();
                break;
            case "get":
                HttpURLConnection c = (HttpURLConnection) new URL("http://" + q.get("addr") + "/health").openConnection();
                c.setRequestProperty("Connection", "close");
                if (c.getResponseCode() != 200) {
                    throw new IOException("HTTP " + c.getResponseCode());
                }
                c.getInputStream().readAllBytes();
                break;
            default:
                throw new IOException("no such op");
        }
    }

    public static void main(String[] args) throws IOException {
        int port = Integer.parseInt(System.getenv("FAULTBOX_APP_HTTP_PORT"));
        HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", port), 0);
        server.setExecutor(Executors.newCachedThreadPool());
        server.createContext("/", exchange -> {
            String failure = "";
            if (exchange.getRequestURI().getPath().equals("/do")) {
                Map<String, String> query = new HashMap<>();
                for (String pair : exchange.getRequestURI().getRawQuery().split("&")) {
                    String[] kv = pair.split("=", 2);
                    query.put(kv[0], URLDecoder.decode(kv[1], StandardCharsets.UTF_8));
                }
                try {
                    perform(query);
                } catch (Exception e) {
                    failure = e.toString();
                }
            }
            String quoted = failure.replace("\\", "\\\\").replace("\"", "\\\"");
            byte[] body = ("{\"failure\": \"" + quoted + "\"}").getBytes(StandardCharsets.UTF_8);
            exchange.getResponseHeaders().set("Content-Type", "application/json");
            exchange.sendResponseHeaders(200, body.length);
            exchange.getResponseBody().write(body);
            exchange.close();
        });
        server.start();
    }
}
