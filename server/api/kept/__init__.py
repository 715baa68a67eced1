"""What lives on without its connection: streams that can be resumed, replies that can be asked for again."""
