// A robot's side of a stream, over the stub that protoc generates: JPEG files out, boxes back.
//
//   robot 127.0.0.1:50051 dog frame0.jpg frame1.jpg ...
//
// Reading and writing are in threads of their own: a stream that is not read is held back.
#include <chrono>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>
#include <thread>

#include <grpcpp/grpcpp.h>

#include "protos/vision_agent.grpc.pb.h"

namespace pb = vision_agent::v1;
using Stream = grpc::ClientReaderWriter<pb::WatchRequest, pb::WatchResponse>;

namespace {

constexpr auto kFrameInterval = std::chrono::milliseconds(100);
constexpr double kMaxAgeMs = 5000.0;

void Write(Stream& stream, const pb::WatchRequest& request) {
  // False: the stream is broken; Finish() in main says why.
  stream.Write(request);
}

void Open(Stream& stream, const std::string& query) {
  pb::WatchRequest open;
  open.mutable_open()->mutable_policy()->set_max_age_ms(kMaxAgeMs);
  Write(stream, open);
  pb::WatchRequest put;
  put.mutable_put_query()->set_change_id(1);
  put.mutable_put_query()->mutable_query()->set_id("goal");
  put.mutable_put_query()->mutable_query()->set_text(query);
  Write(stream, put);
}

void SendFrames(Stream& stream, int count, char** paths) {
  for (int number = 0; number < count; ++number) {
    std::ifstream file(paths[number], std::ios::binary);
    pb::WatchRequest request;
    pb::Frame* frame = request.mutable_frame();
    frame->set_sequence(number);  // must increase
    frame->set_capture_time_ns(std::chrono::duration_cast<std::chrono::nanoseconds>(
        std::chrono::system_clock::now().time_since_epoch()).count());
    frame->set_encoded_image(std::string(std::istreambuf_iterator<char>(file), {}));
    Write(stream, request);
    std::this_thread::sleep_for(kFrameInterval);
  }
  pb::WatchRequest end;
  end.mutable_end();
  Write(stream, end);
  stream.WritesDone();
}

void Print(const char* kind, const pb::FrameResult& result) {
  std::cout << kind << ' ' << result.sequence() << ':';
  for (const pb::QueryResult& answer : result.results()) {
    std::cout << ' ' << pb::AnswerStatus_Name(answer.status());
    for (const pb::Detection& found : answer.detections())
      std::cout << ' ' << found.label() << " #" << found.track_id() << " (" << found.box().x1()
                << ' ' << found.box().y1() << ' ' << found.box().x2() << ' ' << found.box().y2()
                << "), " << found.evidence_age_ms() << " ms old";
  }
  std::cout << '\n';
}

void Hear(const pb::WatchResponse& said) {
  switch (said.message_case()) {
    case pb::WatchResponse::kResult: Print("frame", said.result()); break;
    case pb::WatchResponse::kKeyframe: Print("key frame", said.keyframe().result()); break;
    case pb::WatchResponse::kError:
      std::cout << pb::ErrorCode_Name(said.error().code()) << ": " << said.error().message() << '\n';
      break;
    case pb::WatchResponse::kDrain:  // open a new stream with the token of StreamOpened
      std::cout << "the replica goes away in " << said.drain().grace_s() << " s\n";
      break;
    default: break;  // acks, books
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) {
    std::cerr << "usage: robot HOST:PORT QUERY FRAME.jpg...\n";
    return 2;
  }
  auto channel = grpc::CreateChannel(argv[1], grpc::InsecureChannelCredentials());
  auto stub = pb::VisionAgent::NewStub(channel);
  grpc::ClientContext context;
  auto stream = stub->Watch(&context);
  Open(*stream, argv[2]);
  std::thread sender(SendFrames, std::ref(*stream), argc - 3, argv + 3);
  for (pb::WatchResponse said; stream->Read(&said);) Hear(said);
  sender.join();
  grpc::Status status = stream->Finish();
  if (!status.ok()) std::cerr << status.error_message() << '\n';
  return status.ok() ? 0 : 1;
}
