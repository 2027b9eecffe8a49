//! Generated messages.
/// CSI, for now as far as the seams name it; replaced by the generated code.
pub mod csi {
    /// Stand-in.
    #[derive(Debug, Clone, Default)]
    pub struct NodeStageVolumeRequest;
    /// Stand-in.
    #[derive(Debug, Clone, Default)]
    pub struct NodeUnstageVolumeRequest;
    /// Stand-in.
    #[derive(Debug, Clone, Default)]
    pub struct NodePublishVolumeRequest;
    /// Stand-in.
    #[derive(Debug, Clone, Default)]
    pub struct NodeUnpublishVolumeRequest;
}
